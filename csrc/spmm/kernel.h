// The inner loops of sparse times dense, without threads: see kernel.cpp.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace crane {

// For k < n_rows: y[y_rows[k]] = scale * (base[base_rows[k]] + sum over e in [rowptr[k], rowptr[k + 1]) of
// value[e] * x[col[e]]), divided by the number of those edges if `mean`.
template <typename T, typename Index>
struct SpmmArgs {
  const int64_t* rowptr;
  const Index* col;
  const T* value;
  const T* x;
  const T* base;             // null: zeros
  const int64_t* base_rows;  // null: k; a negative one: zeros
  T* y;
  const int64_t* y_rows;  // null: k
  int64_t* argmax;        // only for the maximum
  int64_t n_rows;
  int64_t width;
  int64_t x_stride;     // elements from a row of x to the next
  int64_t base_stride;  // the same of base; rows of y and argmax follow each other
  Accumulator<T> scale;
  bool mean;
  bool read_next;  // whether what follows reads y at once, as the next of several products does
};

// For k < n_rows: out[e] = dot of g[k] and x[col[e]], e in [rowptr[k], rowptr[k + 1]).
template <typename T, typename Index>
struct SddmmArgs {
  const Index* col;
  const T* g;
  const T* x;
  T* out;
  int64_t width;
  int64_t g_stride;
  int64_t x_stride;
};

template <typename T, typename Index>
struct SpmmFunctions {
  // Rows [begin, end) of y.
  void (*rows)(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end);
  // The sum over the edges [begin, end) alone, to out[0 .. width).
  void (*partial)(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, Accumulator<T>* out);
  // Row k of y from n sums that follow each other: what `rows` would make of one sum over n_edges edges.
  void (*finish)(const SpmmArgs<T, Index>& args, int64_t k, int64_t n_edges, const Accumulator<T>* sums, int64_t n);
  // For the edges [begin, end), at most 2^31: the largest value[e] * x[col[e]] of each column, and the e of the first
  // such; a NaN is larger than all. Without edges 0 and -1.
  void (*maximum)(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, Accumulator<T>* best, int64_t* winner);
  // Row k of y and of argmax from n results of `maximum` that follow each other, of edges in their order.
  void (*largest)(const SpmmArgs<T, Index>& args, int64_t k, const Accumulator<T>* best, const int64_t* winner,
                  int64_t n);
  // out[e] for the edges [begin, end), all of row k.
  void (*dots)(const SddmmArgs<T, Index>& args, int64_t k, int64_t begin, int64_t end);
};

struct SpmmTable {
  SpmmFunctions<float, int32_t> float_int32;
  SpmmFunctions<float, int64_t> float_int64;
  SpmmFunctions<double, int32_t> double_int32;
  SpmmFunctions<double, int64_t> double_int64;
  SpmmFunctions<BFloat16, int32_t> bfloat16_int32;
  SpmmFunctions<BFloat16, int64_t> bfloat16_int64;
  SpmmFunctions<Half, int32_t> half_int32;
  SpmmFunctions<Half, int64_t> half_int64;
};

CRANE_KERNEL_TABLE(SpmmTable, spmm_table)

}  // namespace crane
