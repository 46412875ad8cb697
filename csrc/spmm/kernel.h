// The inner loops of sparse times dense, without threads: see kernel.cpp.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace crane {

// y[i] = scale * (base[i] + sum over e in [rowptr[i], rowptr[i + 1]) of value[e] * x[col[e]]), i < n_rows.
template <typename T, typename Index>
struct SpmmArgs {
  const int64_t* rowptr;
  const Index* col;
  const T* value;
  const T* x;
  const T* base;  // null: zeros
  T* y;
  int64_t n_rows;
  int64_t width;
  int64_t x_stride;     // elements from a row of x to the next
  int64_t base_stride;  // the same of base; rows of y follow each other
  T scale;
};

template <typename T, typename Index>
struct SpmmFunctions {
  // Rows [begin, end) of y.
  void (*rows)(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end);
  // The sum over the edges [begin, end) alone, to out[0 .. width).
  void (*partial)(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, T* out);
};

struct SpmmTable {
  SpmmFunctions<float, int32_t> float_int32;
  SpmmFunctions<float, int64_t> float_int64;
  SpmmFunctions<double, int32_t> double_int32;
  SpmmFunctions<double, int64_t> double_int64;
};

CRANE_KERNEL_TABLE(SpmmTable, spmm_table)

}  // namespace crane
