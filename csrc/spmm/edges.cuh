// What the kernels over the edges of a graph share.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/device.cuh"
#include "spmm/spmm_cuda.h"

namespace crane::cuda {

struct Range {
  int64_t begin, end;
};

__device__ inline int64_t load_col(const Csr& a, int64_t edge) {
  return a.wide ? load_once(static_cast<const int64_t*>(a.col) + edge)
                : int64_t{load_once(static_cast<const int32_t*>(a.col) + edge)};
}

// The row that holds an edge, sought from row `low` on.
__device__ inline int64_t row_of_edge(const Csr& a, int64_t low, int64_t edge) {
  int64_t high = a.n_rows - 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (load(a.rowptr + middle + 1) > edge) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

__device__ inline Range edges_of_row(const Csr& a, const Group& group, int64_t row) {
  const int64_t bound = group.lane < 2 ? load(a.rowptr + row + group.lane) : 0;
  return {group.broadcast(bound, 0), group.broadcast(bound, 1)};
}

// Whether a mask, if there is one, has the row.
__device__ inline bool wants(const uint8_t* mask, const Group& group, int64_t row) {
  if (mask == nullptr) return true;
  return group.broadcast(group.lane == 0 ? static_cast<int>(load(mask + row)) : 0, 0) != 0;
}

// The k-th of the rows asked for. One that is not there ends the kernel: the host could not look at it without waiting
// for the device.
__device__ inline int64_t load_row(const int64_t* rows, int64_t k, int64_t n_rows) {
  const int64_t row = load(rows + k);
  if (row < 0 || row >= n_rows) trap("a row is out of range");
  return row;
}

__device__ inline int64_t row_of_output(const int64_t* rows, const Group& group, int64_t out, int64_t n_rows) {
  if (rows == nullptr) return out;
  return group.broadcast(group.lane == 0 ? load_row(rows, out, n_rows) : 0, 0);
}

// Calls f(row, edges of the row, those of them in [first, last)) for each row with edges in [first, last), which must
// not be empty.
template <typename F>
__device__ void for_rows(const Csr& a, const Group& group, int64_t first, int64_t last, const F& f) {
  int64_t row = group.broadcast(group.lane == 0 ? row_of_edge(a, 0, first) : 0, 0);
  while (true) {
    const Range edges = edges_of_row(a, group, row);
    f(row, edges, Range{edges.begin > first ? edges.begin : first, edges.end < last ? edges.end : last});
    if (edges.end >= last) return;
    int64_t next = row + 1;  // not empty, mostly
    if (group.lane == 0 && load(a.rowptr + next + 1) <= edges.end) next = row_of_edge(a, next + 1, edges.end);
    row = group.broadcast(next, 0);
  }
}

// Lanes for a row of so many accesses: enough to fetch edges side by side, and no more than a warp.
inline int group_size(int64_t accesses) {
  int size = 4;
  while (size < 32 && size < accesses) size *= 2;
  return size;
}

// The most bytes a lane can move at once, of those there are kernels for, where everything is a multiple of `all`'s
// lowest bit.
template <typename T>
int widest_access(uintptr_t all) {
  if (all % 16 == 0) return 16;
  return sizeof(T) == 2 && all % 4 == 0 ? 4 : static_cast<int>(sizeof(T));
}

// Calls f with the number of bytes as a constant.
template <typename T, typename F>
const char* with_access(int bytes, const F& f) {
  if (bytes == 16) return f(std::integral_constant<int, 16>{});
  if constexpr (sizeof(T) == 2) {
    if (bytes == 4) return f(std::integral_constant<int, 4>{});
  }
  return f(std::integral_constant<int, static_cast<int>(sizeof(T))>{});
}

// Calls f with a zero of the type.
template <typename F>
const char* with_type(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f(float{});
    case Type::kDouble:
      return f(double{});
    case Type::kHalf:
      return f(Half{});
    default:
      return f(BFloat16{});
  }
}

}  // namespace crane::cuda
