// Which rows a computation needs, as bytes: the receptive field of wanted rows, layer by layer. All that threads write
// at the same time is the same 1.
#include "common/device.cuh"
#include "spmm/edges.cuh"
#include "spmm/spmm_cuda.h"

namespace crane::cuda {

namespace {

constexpr int kBlock = 256;
constexpr int kLanes = 32;
constexpr int64_t kSegment = 512;  // edges a warp

__global__ void __launch_bounds__(kBlock)
    mark_rows_kernel(const int64_t* rows, int64_t n, int64_t n_rows, uint8_t* reached) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (k < n) store(reached + load_row(rows, k, n_rows), uint8_t{1});
}

__global__ void __launch_bounds__(kBlock) mark_columns_kernel(const Csr a, const uint8_t* wanted, uint8_t* reached) {
  const Group group(kLanes);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * (kBlock / kLanes) + group.number()) * kSegment;
  if (first >= a.n_edges) return;
  const int64_t last = first + kSegment < a.n_edges ? first + kSegment : a.n_edges;
  for_rows(a, group, first, last, [&](int64_t row, Range, Range part) {
    if (!wants(wanted, group, row)) return;
    for (int64_t e = part.begin + group.lane; e < part.end; e += kLanes) store(reached + load_col(a, e), uint8_t{1});
  });
}

}  // namespace

const char* mark_rows(const int64_t* rows, int64_t n, int64_t n_rows, uint8_t* reached, void* stream) {
  if (n == 0) return nullptr;
  return launch("mark_rows", mark_rows_kernel, dim3{blocks(n, kBlock), 1, 1}, kBlock, 0, stream, rows, n, n_rows,
                reached);
}

const char* mark_columns(const Csr& a, const uint8_t* wanted, uint8_t* reached, void* stream) {
  if (a.n_edges == 0) return nullptr;
  const dim3 grid{blocks(a.n_edges, kSegment * (kBlock / kLanes)), 1, 1};
  return launch("mark_columns", mark_columns_kernel, grid, kBlock, 0, stream, a, wanted, reached);
}

}  // namespace crane::cuda
