// One dot product an edge. Edges are dealt out in equal segments whatever rows they are of; a group of lanes keeps the
// row of g that its edges share, as far as its registers go, while the rows of x stream through.
#include "common/device.cuh"
#include "spmm/edges.cuh"
#include "spmm/spmm_cuda.h"

namespace crane::cuda {

namespace {

constexpr int kBlock = 256;
constexpr int64_t kSegment = 128;  // edges a group
constexpr int kUnroll = 4;
constexpr int kBlocks = 2;  // on a multiprocessor at least: left to itself, ptxas spills registers for more

template <typename T>
struct Args {
  Sddmm call;
  int group;  // lanes

  __device__ const T* g(int64_t row, int64_t column) const {
    return static_cast<const T*>(call.g) + row * call.g_stride + column;
  }
  __device__ const T* x(int64_t row, int64_t column) const {
    return static_cast<const T*>(call.x) + row * call.x_stride + column;
  }
};

// This lane's share of the dot products of g and the rows of x that `count` lanes' col names, added over the lanes;
// lane i gets that of edge i.
template <int kWidth, typename T>
__device__ Accumulator<T> dots(const Args<T>& args, const Group& group, const Pack<T, kWidth>& g, int64_t col,
                               int count, int64_t column) {
  using A = Accumulator<T>;
  const bool active = column < args.call.width;
  A mine = 0;
  for (int i = 0; i < count; i += kUnroll) {
    Pack<T, kWidth> row[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t j = group.broadcast(col, i + u);
      if (active && i + u < count) row[u] = load_pack<kWidth>(args.x(j, column));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      A dot = 0;
      if (active && i + u < count) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) dot += widen(g.v[k]) * widen(row[u].v[k]);
      }
      dot = group.sum(dot);
      if (group.lane == i + u) mine = dot;
    }
  }
  return mine;
}

template <typename T, int kBytes>
__global__ void __launch_bounds__(kBlock, kBlocks) sddmm_kernel(const Args<T> args) {
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
  using A = Accumulator<T>;
  const Sddmm& call = args.call;
  const Group group(args.group);
  const int64_t segment = static_cast<int64_t>(blockIdx.x) * (kBlock / group.size) + group.number();
  const int64_t first = segment * kSegment;
  if (first >= call.a.n_edges) return;
  const int64_t last = first + kSegment < call.a.n_edges ? first + kSegment : call.a.n_edges;
  const int64_t step = static_cast<int64_t>(group.size) * kWidth, own = static_cast<int64_t>(group.lane) * kWidth;
  for_rows(call.a, group, first, last, [&](int64_t row, Range all, Range part) {
    const bool counts = wants(call.g_mask, group, row);
    Pack<T, kWidth> g;
    if (counts && own < call.width) g = load_pack<kWidth>(args.g(row, own));
    for (int64_t chunk = part.begin; chunk < part.end; chunk += group.size) {
      const int count = static_cast<int>(part.end - chunk < group.size ? part.end - chunk : group.size);
      A dot = 0;
      if (counts) {
        const int64_t col = group.lane < count ? load_col(call.a, chunk + group.lane) : 0;
        dot = dots<kWidth>(args, group, g, col, count, own);
        for (int64_t column = own + step; column - own < call.width; column += step) {
          Pack<T, kWidth> more;
          if (column < call.width) more = load_pack<kWidth>(args.g(row, column));
          dot += dots<kWidth>(args, group, more, col, count, column);
        }
        if (call.mean) dot /= static_cast<A>(all.end - all.begin);
      }
      T result;
      narrow(dot, result);
      if (group.lane < count) store(static_cast<T*>(call.out) + chunk + group.lane, result);
    }
  });
}

template <typename T, int kBytes>
const char* run(Args<T> args, void* stream) {
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
  args.group = group_size((args.call.width + kWidth - 1) / kWidth);
  const int64_t segments = (args.call.a.n_edges + kSegment - 1) / kSegment, each = kBlock / args.group;
  const dim3 grid{static_cast<unsigned>((segments + each - 1) / each), 1, 1};
  return launch("sddmm", sddmm_kernel<T, kBytes>, grid, kBlock, 0, stream, args);
}

}  // namespace

const char* sddmm(const Sddmm& call, void* stream) {
  if (call.a.n_edges == 0) return nullptr;
  return with_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    const uintptr_t all = reinterpret_cast<uintptr_t>(call.g) | reinterpret_cast<uintptr_t>(call.x) |
                          static_cast<uintptr_t>(call.width | call.g_stride | call.x_stride) * sizeof(T);
    Args<T> args{};
    args.call = call;
    return with_access<T>(widest_access<T>(all),
                          [&](auto bytes) { return run<T, decltype(bytes)::value>(args, stream); });
  });
}

}  // namespace crane::cuda
