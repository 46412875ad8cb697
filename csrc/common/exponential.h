// exp of vectors, for kernel sources: n = round(x / ln 2) and a Taylor series of exp(x - n ln 2), within 2 units in the
// last place. 0 below `kLeast`, where the result would be denormal; NaN stays NaN; x must be well below overflow.
// exponential2 is 2^x in float32, likewise and within 1.2 units (1 with FMA), for callers that can put the factor ln 2
// elsewhere: the remainder x - n is exact, and the polynomial is shorter.
#pragma once

#include <cstdint>

#include "common/vector.h"

namespace {

template <typename T>
struct ExponentialOf;

template <>
struct ExponentialOf<float> {
  typedef int32_t bits;
  static constexpr int kDegree = 7, kMantissa = 23;
  static constexpr float kLeast = -87.f, kLeast2 = -126.f;
  // 1.5 * 2^23, so that what is added to it is rounded to an integer, and the bias of exponents.
  static constexpr float kRound = 12582912.f + 127.f;
  // ln 2 in two parts, the first with zeros at its end, so that n times it is exact
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct ExponentialOf<double> {
  typedef int64_t bits;
  static constexpr int kDegree = 13, kMantissa = 52;
  static constexpr double kLeast = -708.;
  static constexpr double kRound = 6755399441055744. + 1023.;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
};

template <typename T>
constexpr T inverse_factorial(int n) {
  T product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return 1 / product;
}

// 2^n for shifted = n + kRound: the last bits of the sum are the exponent's.
template <typename T, int kWidth>
inline typename VectorOf<T, kWidth>::type power_of_two(typename VectorOf<T, kWidth>::type shifted) {
  typedef typename ExponentialOf<T>::bits Bits __attribute__((vector_size(sizeof(shifted))));
  Bits power;
  __builtin_memcpy(&power, &shifted, sizeof(power));
  power <<= ExponentialOf<T>::kMantissa;
  __builtin_memcpy(&shifted, &power, sizeof(power));
  return shifted;
}

template <typename T, int kWidth>
inline typename VectorOf<T, kWidth>::type exponential(typename VectorOf<T, kWidth>::type x) {
  using E = ExponentialOf<T>;
  using V = typename VectorOf<T, kWidth>::type;
  typedef typename E::bits Bits __attribute__((vector_size(sizeof(typename E::bits) * kWidth)));
  const Bits small = x < E::kLeast;
  // The sum holds n in its last bits, whatever the compiler contracts: rounding happens in the addition alone.
  const V shifted = x * static_cast<T>(1.44269504088896340736) + E::kRound;
  const V n = shifted - E::kRound;
  const V r = (x - n * E::kLn2High) - n * E::kLn2Low;
  V series = V{} + inverse_factorial<T>(E::kDegree);
  for (int i = E::kDegree - 1; i >= 0; --i) series = series * r + inverse_factorial<T>(i);
  return small ? V{} : series * power_of_two<T, kWidth>(shifted);
}

template <int kWidth>
inline typename VectorOf<float, kWidth>::type exponential2(typename VectorOf<float, kWidth>::type x) {
  using E = ExponentialOf<float>;
  using V = typename VectorOf<float, kWidth>::type;
  // Minimax in relative error over [-1/2, 1/2], 2e-9 there.
  constexpr float kCoefficients[] = {1.339887445e-3f, 9.618437358e-3f, 5.550332471e-2f,
                                     2.402264791e-1f, 6.931472029e-1f, 1.f};
  const auto small = x < E::kLeast2;
  const V shifted = x + E::kRound;
  const V r = x - (shifted - E::kRound);
  V series = V{} + 1.535336199e-4f;
  for (const float coefficient : kCoefficients) series = series * r + coefficient;
  return small ? V{} : series * power_of_two<float, kWidth>(shifted);
}

}  // namespace
