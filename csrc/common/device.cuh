// What kernels are written with, on the GPU and under the CPU's stand-in (cuda_on_cpu/cuda_on_cpu.h) alike: types,
// loads and stores, groups of lanes, launches. Kernels touch global memory through load and store alone, so that the
// stand-in can count every byte.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_on_cpu/cuda_on_cpu.h"
#endif

namespace crane::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type that sums over T are held in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

template <int kBytes>
struct Bits;
template <>
struct Bits<1> {
  using type = uint8_t;
};
template <>
struct Bits<2> {
  using type = uint16_t;
};
template <>
struct Bits<4> {
  using type = uint32_t;
};

#if defined(__CUDACC__)

template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<16> {
  using type = uint4;
};

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(Half v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ inline float widen(BFloat16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }

__device__ inline void narrow(float v, float& out) { out = v; }
__device__ inline void narrow(double v, double& out) { out = v; }
__device__ inline void narrow(float v, Half& out) { out.bits = __half_as_ushort(__float2half_rn(v)); }
__device__ inline void narrow(float v, BFloat16& out) { out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }

template <int kBytes>
__device__ inline typename Bits<kBytes>::type load_bits(const void* p) {
  return *static_cast<const typename Bits<kBytes>::type*>(p);
}
// Read once and not again soon: keeps the caches for what is.
template <int kBytes>
__device__ inline typename Bits<kBytes>::type load_bits_once(const void* p) {
  return __ldcs(static_cast<const typename Bits<kBytes>::type*>(p));
}
template <int kBytes>
__device__ inline void store_bits(void* p, typename Bits<kBytes>::type bits) {
  *static_cast<typename Bits<kBytes>::type*>(p) = bits;
}

[[noreturn]] __device__ inline void trap(const char*) {
  __trap();
  __builtin_unreachable();
}

#define CRANE_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char crane_shared[]; \
  T* name = reinterpret_cast<T*>(crane_shared)

// Starts a kernel; returns null, or what went wrong.
template <typename... Parameters, typename... Arguments>
const char* launch(const char*, void (*kernel)(Parameters...), dim3 grid, unsigned block, size_t shared_bytes,
                   void* stream, const Arguments&... arguments) {
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline const char* fill_zero(void* p, size_t bytes, void* stream) {
  const cudaError_t error = cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#else  // the CPU's stand-in

template <>
struct Bits<8> {
  using type = uint64_t;
};
template <>
struct Bits<16> {
  struct alignas(16) type {
    uint64_t low, high;
  };
};

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(Half v) { return cuda_on_cpu::half_to_float(v.bits); }
inline float widen(BFloat16 v) { return cuda_on_cpu::bfloat16_to_float(v.bits); }

inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, Half& out) { out.bits = cuda_on_cpu::float_to_half(v); }
inline void narrow(float v, BFloat16& out) { out.bits = cuda_on_cpu::float_to_bfloat16(v); }

template <int kBytes>
inline typename Bits<kBytes>::type load_bits(const void* p) {
  cuda_on_cpu::count(p, kBytes, false);
  typename Bits<kBytes>::type bits;
  std::memcpy(&bits, p, kBytes);
  return bits;
}
template <int kBytes>
inline typename Bits<kBytes>::type load_bits_once(const void* p) {
  return load_bits<kBytes>(p);
}
template <int kBytes>
inline void store_bits(void* p, typename Bits<kBytes>::type bits) {
  cuda_on_cpu::count(p, kBytes, true);
  std::memcpy(p, &bits, kBytes);
}

[[noreturn]] inline void trap(const char* what) { cuda_on_cpu::fail(what); }

#define CRANE_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(cuda_on_cpu::dynamic_shared())

template <typename... Parameters, typename... Arguments>
const char* launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned block, size_t shared_bytes,
                   void*, const Arguments&... arguments) {
  cuda_on_cpu::run(name, grid, dim3{block}, shared_bytes, [&] { kernel(arguments...); });
  return nullptr;
}

inline const char* fill_zero(void* p, size_t bytes, void*) {
  std::memset(p, 0, bytes);
  return nullptr;
}

#endif

template <typename V>
__device__ inline V load(const V* p) {
  const auto bits = load_bits<sizeof(V)>(p);
  V value;
  memcpy(&value, &bits, sizeof(V));
  return value;
}

template <typename V>
__device__ inline V load_once(const V* p) {
  const auto bits = load_bits_once<sizeof(V)>(p);
  V value;
  memcpy(&value, &bits, sizeof(V));
  return value;
}

template <typename V>
__device__ inline void store(V* p, V value) {
  typename Bits<sizeof(V)>::type bits;
  memcpy(&bits, &value, sizeof(V));
  store_bits<sizeof(V)>(p, bits);
}

// kWidth neighbours, moved by one access of at most 16 bytes, or by several of 16.
template <typename V, int kWidth>
struct Pack {
  V v[kWidth];
};

template <int kWidth, typename V>
__device__ inline Pack<V, kWidth> load_pack(const V* p) {
  constexpr int kBytes = sizeof(V) * kWidth < 16 ? sizeof(V) * kWidth : 16;
  constexpr int kEach = kBytes / sizeof(V);
  Pack<V, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; i += kEach) {
    const auto bits = load_bits<kBytes>(p + i);
    memcpy(&pack.v[i], &bits, kBytes);
  }
  return pack;
}

template <int kWidth, typename V>
__device__ inline void store_pack(V* p, const Pack<V, kWidth>& pack) {
  constexpr int kBytes = sizeof(V) * kWidth < 16 ? sizeof(V) * kWidth : 16;
  constexpr int kEach = kBytes / sizeof(V);
#pragma unroll
  for (int i = 0; i < kWidth; i += kEach) {
    typename Bits<kBytes>::type bits;
    memcpy(&bits, &pack.v[i], kBytes);
    store_bits<kBytes>(p + i, bits);
  }
}

// `size` neighbouring lanes of a warp, a power of two, that work on one thing together. Its members must be called by
// all of them.
struct Group {
  int size, lane;
  unsigned mask;

  __device__ explicit Group(int size) : size(size), lane(static_cast<int>(threadIdx.x) & (size - 1)) {
    const unsigned first = (threadIdx.x & 31u) & ~static_cast<unsigned>(size - 1);
    mask = size == 32 ? 0xFFFFFFFFu : ((1u << size) - 1u) << first;
  }

  // Number of this group in its block.
  __device__ int number() const { return static_cast<int>(threadIdx.x) / size; }

  template <typename V>
  __device__ V broadcast(V value, int from) const {
    return __shfl_sync(mask, value, from, size);
  }

  // Bit i: what lane i of the group says.
  __device__ unsigned ballot(bool predicate) const {
    return __ballot_sync(mask, predicate) >> (__ffs(static_cast<int>(mask)) - 1);
  }

  // The sum over the lanes, in all of them, in an order that depends on `size` alone.
  template <typename V>
  __device__ V sum(V value) const {
    for (int distance = size / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(mask, value, distance, size);
    return value;
  }
};

// Bytes rounded up, so that what follows them in a workspace is aligned for every access.
inline size_t aligned(int64_t bytes) { return static_cast<size_t>((bytes + 15) / 16 * 16); }

// How many blocks of `each` items there are.
inline unsigned blocks(int64_t items, int64_t each) { return static_cast<unsigned>((items + each - 1) / each); }

}  // namespace crane::cuda
