// Counts the memory that is asked for: by the allocator's own hooks under a sanitizer, else by standing before it.
#include <malloc.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "testing.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// In sanitizer/allocator_interface.h, which g++ lacks.
extern "C" {
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, size_t),
                                              void (*free_hook)(const volatile void*));
size_t __sanitizer_get_current_allocated_bytes();
}

namespace {
std::atomic<size_t> count{0};
const int installed = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, size_t) { count.fetch_add(1, std::memory_order_relaxed); }, [](const volatile void*) {});
}  // namespace

namespace int8d::testing {
size_t allocations() { return installed ? count.load() : 0; }
size_t allocated_bytes() { return __sanitizer_get_current_allocated_bytes(); }
}  // namespace int8d::testing

#else

namespace {
std::atomic<size_t> count{0};

template <typename F, typename... Args>
auto counted(F real, Args... args) {
  count.fetch_add(1, std::memory_order_relaxed);
  return real(args...);
}
}  // namespace

// The names that glibc keeps for those who replace the others. operator new ends in malloc.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

#define INT8D_EXPORT __attribute__((visibility("default")))
INT8D_EXPORT void* malloc(size_t bytes) { return counted(__libc_malloc, bytes); }
INT8D_EXPORT void* calloc(size_t n, size_t bytes) { return counted(__libc_calloc, n, bytes); }
INT8D_EXPORT void* realloc(void* p, size_t bytes) { return counted(__libc_realloc, p, bytes); }
INT8D_EXPORT void* memalign(size_t alignment, size_t bytes) { return counted(__libc_memalign, alignment, bytes); }
INT8D_EXPORT void* aligned_alloc(size_t alignment, size_t bytes) { return counted(__libc_memalign, alignment, bytes); }
INT8D_EXPORT int posix_memalign(void** p, size_t alignment, size_t bytes) {
  *p = counted(__libc_memalign, alignment, bytes);
  return *p ? 0 : ENOMEM;
}
#undef INT8D_EXPORT
}

namespace int8d::testing {
size_t allocations() { return count.load(); }
size_t allocated_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}
}  // namespace int8d::testing

#endif
