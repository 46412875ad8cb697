// Dense results on large pages: a new one of many megabytes otherwise costs a page fault every 4 KB, which takes about
// as long as a sparse product needs to fill it.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <initializer_list>

#include "common/tensors.h"

namespace crane {

// Asks for large pages where the memory of t spans whole ones. A hint: where the system has none, nothing happens.
inline void prefer_large_pages(const Tensor& t, int64_t bytes) {
  constexpr uintptr_t kLarge = 2 << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t first = (start + kLarge - 1) / kLarge * kLarge, last = (start + bytes) / kLarge * kLarge;
#if defined(MADV_HUGEPAGE)
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline int64_t bytes_per_element(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:
      return 4;
  }
}

// A matrix like `like`, not filled.
inline Tensor new_matrix(const Tensor& like, int64_t n_rows, int64_t width) {
  const Tensor t = torch::stable::new_empty(like, {n_rows, width});
  prefer_large_pages(t, t.numel() * bytes_per_element(t));
  return t;
}

}  // namespace crane
