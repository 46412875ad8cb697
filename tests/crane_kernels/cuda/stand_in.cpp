// Small kernels, right and wrong ones, for the tests of the CPU's stand-in itself. Arguments: the scenario, and
// anything more for a descending order of threads.
#include <cstdio>
#include <string>
#include <vector>

#include "common/device.cuh"

namespace {

using namespace crane::cuda;

// Reverses each block's part of an array through shared memory; wrong without the barrier.
__global__ void reverse(const int* in, int* out, bool barrier) {
  CRANE_DYNAMIC_SHARED(int, turned);
  __shared__ int sum;
  const unsigned last = blockDim.x - 1;
  if (threadIdx.x == 0) sum = 0;
  turned[last - threadIdx.x] = load(in + blockIdx.x * blockDim.x + threadIdx.x);
  if (barrier) __syncthreads();
  sum += turned[threadIdx.x];
  store(out + blockIdx.x * blockDim.x + threadIdx.x, turned[threadIdx.x]);
  if (__syncthreads_or(threadIdx.x == last) == 0 || __syncthreads_or(0) != 0) store(out, -1);
  if (threadIdx.x == 0) store(out + gridDim.x * blockDim.x + blockIdx.x, sum);
}

// Lane i of each group of 8 gets the sum of its group, the ballot of odd lanes and lane 3's value.
__global__ void warp(int* out) {
  const Group group(8);
  const int at = static_cast<int>(threadIdx.x);
  if (group.number() == 2) return;                                  // other groups do not care
  for (int i = 0; i < group.number(); ++i) __syncwarp(group.mask);  // groups go at a pace of their own
  store(out + at,
        group.sum(at) * 10000 + static_cast<int>(group.ballot(at % 2 == 1)) * 10 + group.broadcast(at % 8, 3));
}

__global__ void a_lane_is_missing() {
  if (threadIdx.x != 5) __syncwarp();
}

__global__ void a_thread_misses_the_barrier() {
  if (threadIdx.x != 5) __syncthreads();
}

__global__ void lanes_differ() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __ballot_sync(0xFFFFFFFFu, true);
  }
}

__global__ void outside_the_mask() { __shfl_sync(threadIdx.x < 16 ? 0x0000FFFFu : 0xFFFF0000u, 1, 20); }

__global__ void misaligned(const char* p) { load(reinterpret_cast<const double*>(p + 4)); }

__global__ void past_the_end(int* p) { store(p + blockDim.x, 1); }

__global__ void past_shared_memory() {
  CRANE_DYNAMIC_SHARED(int, memory);
  memory[blockDim.x + threadIdx.x] = 1;
}

int print(const std::vector<int>& values) {
  for (int value : values) std::printf("%d ", value);
  std::printf("\n%ld %ld\n", static_cast<long>(cuda_on_cpu::launches().back().bytes_loaded),
              static_cast<long>(cuda_on_cpu::launches().back().bytes_stored));
  return 0;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  const std::string scenario = arguments[1];
  cuda_on_cpu::settings().descending = n_arguments > 2;
  constexpr unsigned kThreads = 64;
  std::vector<int> in(2 * kThreads), out(2 * kThreads + 2, 0);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i);
  const dim3 two{2, 1, 1}, one{1, 1, 1};
  if (scenario == "reverse" || scenario == "no barrier") {
    launch("reverse", reverse, two, kThreads, kThreads * sizeof(int), nullptr, in.data(), out.data(),
           scenario == "reverse");
    return print(out);
  }
  if (scenario == "warp") {
    std::vector<int> lanes(32, 0);
    launch("warp", warp, one, 32, 0, nullptr, lanes.data());
    return print(lanes);
  }
  if (scenario == "a lane is missing") launch("k", a_lane_is_missing, one, 32, 0, nullptr);
  if (scenario == "a thread misses the barrier") launch("k", a_thread_misses_the_barrier, one, 64, 0, nullptr);
  if (scenario == "lanes differ") launch("k", lanes_differ, one, 32, 0, nullptr);
  if (scenario == "outside the mask") launch("k", outside_the_mask, one, 32, 0, nullptr);
  if (scenario == "misaligned") launch("k", misaligned, one, 1, 0, nullptr, reinterpret_cast<const char*>(in.data()));
  if (scenario == "past the end") {
    std::vector<int> exact(kThreads);
    launch("k", past_the_end, one, kThreads, 0, nullptr, exact.data());
  }
  if (scenario == "past shared memory") launch("k", past_shared_memory, one, 32, 32 * sizeof(int), nullptr);
  return 0;
}
