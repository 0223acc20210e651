// A 64-byte aligned array, zeroed, with kOverread bytes of slack at its end.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace int8d {

template <typename T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count) : size_(count) {
    bytes_ = (count * sizeof(T) + 127) / 64 * 64;
    // Large blocks (weights) begin where a huge page may, and ask for some: fewer TLB misses, and quicker to fill.
    const size_t alignment = bytes_ >= kHugePage ? kHugePage : 64;
    data_ = static_cast<T*>(std::aligned_alloc(alignment, (bytes_ + alignment - 1) / alignment * alignment));
    if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes_ >= kHugePage) madvise(data_, bytes_ / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish; refusal is fine
#endif
    std::memset(static_cast<void*>(data_), 0, bytes_);
  }
  Aligned(Aligned&& other) noexcept { swap(other); }
  Aligned& operator=(Aligned&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Aligned() { std::free(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kHugePage = 2 << 20;

  void swap(Aligned& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(bytes_, other.bytes_);
  }
  T* data_ = nullptr;
  size_t size_ = 0, bytes_ = 0;
};

}  // namespace int8d
