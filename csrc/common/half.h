// Element types that are stored in less than they are computed in, and vectors of them. Only for kernel sources, like
// vector.h.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/element.h"
#include "common/vector.h"

namespace {

// kWidth elements of T as a vector of its accumulators.
template <typename T, int kWidth>
struct Lanes {
  using Vector = VectorOf<crane::Accumulator<T>, kWidth>;
  using type = typename Vector::type;
  static inline type load(const T* p) { return Vector::load(p); }
  static inline void store(T* p, type v) { Vector::store(p, v); }
};

inline float float_of_bits(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}

inline uint32_t bits_of_float(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof(bits));
  return bits;
}

inline float widen(crane::BFloat16 h) { return float_of_bits(static_cast<uint32_t>(h.bits) << 16); }

inline crane::BFloat16 narrow_bfloat16(float f) {
  const uint32_t bits = bits_of_float(f);
  if (f != f) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
}

inline float widen(crane::Half h) {
#if defined(__F16C__)
  return _cvtsh_ss(h.bits);
#else
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fff) << 13, sign = static_cast<uint32_t>(h.bits & 0x8000)
                                                                                  << 16;
  if (magnitude >= 0x0f800000) return float_of_bits(sign | 0x70000000 | magnitude);  // infinity or NaN
  // The exponents differ by 112; the product also makes numbers of subnormal ones.
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude) * 0x1p112f));
#endif
}

inline crane::Half narrow_half(float f) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = bits_of_float(f), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 65536 or more
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 shifts its bits to the end, and rounds them
    const uint32_t shifted = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000;
    return {static_cast<uint16_t>(sign | shifted)};
  }
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
#endif
}

template <int kWidth>
struct Lanes<crane::BFloat16, kWidth> {
  using Vector = VectorOf<float, kWidth>;
  using type = typename Vector::type;
  static inline type load(const crane::BFloat16* p) {
    if constexpr (kWidth == 1) {
      return widen(*p);
    } else {
      using Short = typename VectorOf<uint16_t, kWidth>::type;
      using Bits = typename VectorOf<uint32_t, kWidth>::type;
      Short s;
      __builtin_memcpy(&s, p, sizeof(s));
#if defined(__AVX512F__)
      if constexpr (kWidth == 16) return (type)((Bits)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)s) << 16);
#endif
#if defined(__AVX2__)
      if constexpr (kWidth == 8) return (type)((Bits)_mm256_cvtepu16_epi32((__m128i)s) << 16);
#endif
      return (type)(__builtin_convertvector(s, Bits) << 16);
    }
  }
  static inline void store(crane::BFloat16* p, type v) {
    if constexpr (kWidth == 1) {
      *p = narrow_bfloat16(v);
    } else {  // the same for all at once: rows of few edges would spend half their time here
      using Bits = typename VectorOf<uint32_t, kWidth>::type;
      const Bits bits = (Bits)v, nan = (Bits)(v != v);
      const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      const auto s =
          __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), typename VectorOf<uint16_t, kWidth>::type);
      __builtin_memcpy(p, &s, sizeof(s));
    }
  }
};

template <int kWidth>
struct Lanes<crane::Half, kWidth> {
  using Vector = VectorOf<float, kWidth>;
  using type = typename Vector::type;
  static inline type load(const crane::Half* p) {
#if defined(__AVX512F__)
    if constexpr (kWidth == 16)
      return (type)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
#if defined(__F16C__)
    if constexpr (kWidth == 8) return (type)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
    if constexpr (kWidth == 1) {
      return widen(*p);
    } else {
      type v;
      for (int k = 0; k < kWidth; ++k) v[k] = widen(p[k]);
      return v;
    }
  }
  static inline void store(crane::Half* p, type v) {
#if defined(__AVX512F__)
    if constexpr (kWidth == 16) {
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, (__m512)v, 0));
    }
#endif
#if defined(__F16C__)
    if constexpr (kWidth == 8) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, 0));
#endif
    if constexpr (kWidth == 1) {
      *p = narrow_half(v);
    } else {
      for (int k = 0; k < kWidth; ++k) p[k] = narrow_half(v[k]);
    }
  }
};

}  // namespace
