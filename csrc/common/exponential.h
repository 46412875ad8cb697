// exp of vectors, for kernel sources: n = round(x / ln 2) and a Taylor series of exp(x - n ln 2), within 2 units in the
// last place. 0 below `kLeast`, where the result would be denormal; NaN stays NaN; x must be well below overflow.
#pragma once

#include <cstdint>

#include "common/vector.h"

namespace {

template <typename T>
struct ExponentialOf;

template <>
struct ExponentialOf<float> {
  typedef int32_t bits;
  static constexpr int kDegree = 7, kMantissa = 23, kBias = 127;
  static constexpr float kLeast = -87.f;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  // ln 2 in two parts, the first with zeros at its end, so that n times it is exact
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct ExponentialOf<double> {
  typedef int64_t bits;
  static constexpr int kDegree = 13, kMantissa = 52, kBias = 1023;
  static constexpr double kLeast = -708.;
  static constexpr double kRound = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
};

template <typename T>
constexpr T inverse_factorial(int n) {
  T product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return 1 / product;
}

template <typename T, int kWidth>
inline typename VectorOf<T, kWidth>::type exponential(typename VectorOf<T, kWidth>::type x) {
  using E = ExponentialOf<T>;
  using V = typename VectorOf<T, kWidth>::type;
  typedef typename E::bits Bits __attribute__((vector_size(sizeof(typename E::bits) * kWidth)));
  const Bits small = x < E::kLeast;
  x = small ? V{} : x;
  // The sum holds n in its last bits, whatever the compiler contracts: rounding happens in the addition alone.
  const V shifted = x * static_cast<T>(1.44269504088896340736) + E::kRound;
  const V n = shifted - E::kRound;
  const V r = (x - n * E::kLn2High) - n * E::kLn2Low;
  V series = V{} + inverse_factorial<T>(E::kDegree);
  for (int i = E::kDegree - 1; i >= 0; --i) series = series * r + inverse_factorial<T>(i);
  Bits power;
  __builtin_memcpy(&power, &shifted, sizeof(power));
  Bits round;
  const V rounder = V{} + E::kRound;
  __builtin_memcpy(&round, &rounder, sizeof(round));
  const Bits scale_bits = (power - round + E::kBias) << E::kMantissa;
  V scale;
  __builtin_memcpy(&scale, &scale_bits, sizeof(scale));
  return small ? V{} : series * scale;
}

}  // namespace
