// A 64-byte aligned array, zeroed, with kOverread bytes of slack at its end. A copy is another name for the same
// memory.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace int8d {

template <typename T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count) : size_(count) {
    bytes_ = (count * sizeof(T) + 127) / 64 * 64;
    // Large blocks (weights) begin where a huge page may, and ask for some: fewer TLB misses, and quicker to fill.
    const size_t alignment = bytes_ >= kHugePage ? kHugePage : 64;
    void* memory = std::aligned_alloc(alignment, (bytes_ + alignment - 1) / alignment * alignment);
    if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes_ >= kHugePage) madvise(memory, bytes_ / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish; refusal is fine
#endif
    std::memset(memory, 0, bytes_);
    data_ = std::shared_ptr<T[]>(static_cast<T*>(memory), [](T* data) { std::free(data); });
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](size_t i) { return data_[static_cast<ptrdiff_t>(i)]; }
  const T& operator[](size_t i) const { return data_[static_cast<ptrdiff_t>(i)]; }
  size_t size() const { return size_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kHugePage = 2 << 20;

  std::shared_ptr<T[]> data_;
  size_t size_ = 0, bytes_ = 0;
};

}  // namespace int8d
