// Vectors of the widest size of the instruction set a kernel source is compiled for, by the compilers' vector
// extension: the same source gives SSE2, AVX2, AVX-512 and NEON code. Only for kernel sources: everything here has
// internal linkage, so that no function compiled for a wide set can stand in for one compiled for the baseline.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

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

// Stores that pass the caches by, to places aligned to a whole vector. Before others read them: finish_streams.
#if defined(__AVX__)
constexpr bool kStreams = true;
template <typename V>
inline void stream(void* p, V v) {
  static_assert(sizeof(V) == kVectorBytes);
#if defined(__SANITIZE_ADDRESS__)  // which does not see where streams go
  __builtin_memcpy(p, &v, sizeof(v));
#elif defined(__AVX512F__)
  __m512i bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  _mm512_stream_si512(static_cast<__m512i*>(p), bits);
#else
  __m256i bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  _mm256_stream_si256(static_cast<__m256i*>(p), bits);
#endif
}
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool kStreams = false;
template <typename V>
void stream(void*, V) = delete;
inline void finish_streams() {}
#endif

}  // namespace
