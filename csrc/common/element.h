// The element types of dense tensors, as kernels see them, and what each is accumulated in.
#pragma once

#include <cstdint>

namespace crane {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <typename T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<BFloat16> {
  using type = float;
};
template <>
struct AccumulatorOf<Half> {
  using type = float;
};

template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

}  // namespace crane
