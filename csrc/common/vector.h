// Vectors of the widest size of the instruction set a kernel source is compiled for, by the compilers' vector
// extension: the same source gives SSE2, AVX2, AVX-512 and NEON code. Only for kernel sources: everything here has
// internal linkage, so that no function compiled for a wide set can stand in for one compiled for the baseline.
#pragma once

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T, int kWidth>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kWidth)));
  static inline type load(const T* p) {
    type v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static inline void store(T* p, type v) { __builtin_memcpy(p, &v, sizeof(v)); }
};

template <typename T>
struct VectorOf<T, 1> {
  typedef T type;
  static inline type load(const T* p) { return *p; }
  static inline void store(T* p, type v) { *p = v; }
};

}  // namespace
