// A stand-in for CUDA that runs kernels on the CPU, for tests: the same kernel source, compiled by a C++ compiler.
//
// Every CUDA thread of a block is a fiber with a stack of its own, blocks run one after another. A fiber runs until it
// must wait for others (a barrier, a shuffle), so kernels may synchronise as they like; what would hang or be undefined
// on a GPU (a lane that never arrives, lanes at different operations, a lane that reads one outside the mask, a
// misaligned access) ends the process with a message. Threads run in ascending or descending order: a result that
// needs a barrier that is not there differs between the two. Works under AddressSanitizer.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// Of the fiber that runs.
extern dim3 gridDim, blockDim, blockIdx, threadIdx;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

namespace cuda_on_cpu {

struct Launch {
  std::string kernel;
  int64_t blocks, threads_per_block;
  int64_t bytes_loaded, bytes_stored;  // of global memory, through load() and store()
};

struct Settings {
  bool descending = false;          // order of blocks, and of threads in a block
  int64_t blocks_from_the_end = 0;  // not 0: only so many of the last blocks of gridDim.x run
};

Settings& settings();

// What ran so far, in order.
std::vector<Launch>& launches();

// Runs `thread` once for every thread of the grid.
void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

[[noreturn]] void fail(const std::string& message);

// The block's dynamic shared memory, every byte 0xFF when a block begins.
void* dynamic_shared();

enum class Operation { kShuffle, kBallot, kSyncWarp, kSyncThreads };

// Leaves 8 bytes for the other lanes of mask, waits for all of them and returns what each of the warp's 32 left.
const uint64_t* exchange(Operation operation, unsigned mask, uint64_t mine);
int sync_block(bool predicate);
unsigned lane();
uint64_t taken_from(const uint64_t* values, unsigned mask, unsigned source);

void count(const void* p, size_t bytes, bool stored);

template <typename V>
uint64_t to_bits(V value) {
  static_assert(sizeof(V) <= 8 && std::is_trivially_copyable_v<V>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  return bits;
}

template <typename V>
V from_bits(uint64_t bits) {
  V value;
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

// IEEE 754 binary16 and bfloat16, rounding to the nearest, ties to even.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);

}  // namespace cuda_on_cpu

template <typename V>
V __shfl_sync(unsigned mask, V value, int source, int width = 32) {
  const unsigned size = static_cast<unsigned>(width);
  const unsigned from = (cuda_on_cpu::lane() & ~(size - 1)) | (static_cast<unsigned>(source) & (size - 1));
  const uint64_t* all = cuda_on_cpu::exchange(cuda_on_cpu::Operation::kShuffle, mask, cuda_on_cpu::to_bits(value));
  return cuda_on_cpu::from_bits<V>(cuda_on_cpu::taken_from(all, mask, from));
}

template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int lanes, int width = 32) {
  return __shfl_sync(mask, value, static_cast<int>(cuda_on_cpu::lane() ^ static_cast<unsigned>(lanes)), width);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* all = cuda_on_cpu::exchange(cuda_on_cpu::Operation::kBallot, mask, predicate ? 1 : 0);
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) != 0 && all[i] != 0) result |= 1u << i;
  }
  return result;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  cuda_on_cpu::exchange(cuda_on_cpu::Operation::kSyncWarp, mask, 0);
}

inline void __syncthreads() { cuda_on_cpu::sync_block(false); }
inline int __syncthreads_or(int predicate) { return cuda_on_cpu::sync_block(predicate != 0); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
