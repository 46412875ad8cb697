// InfoNCE from rows a to rows b, (n, d) each, in blocks of logits that stay in cache: see kernel.cpp.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace crane {

constexpr int64_t kPanelColumns = 256;                // of the logits, that are computed at a time
constexpr int64_t kPanelStride = kPanelColumns + 16;  // no power of two: rows of a panel are in different cache sets
constexpr int64_t kLogitRows = 48;

struct NceShape {
  int64_t n;
  int64_t width;
  int64_t panels() const { return (n + kPanelColumns - 1) / kPanelColumns; }
};

template <typename T>
struct NceArgs {
  NceShape shape;
  const T* a;          // rows of length 1 / temperature
  const T* b;          // rows of length one
  const T* b_panels;   // b^T, kPanelColumns columns after the other, each lot contiguous
  const int64_t* ids;  // null: all columns count
};

template <typename T>
struct NceBackwardArgs {
  NceArgs<T> forward;
  const T* log_sum_exp;
  T factor;           // of the gradient of every logit
  int64_t first_row;  // of those whose gradients are in `logits`
  int64_t end_row;
  T* logits;  // panels of end_row - first_row rows, kPanelStride apart
};

template <typename T>
struct NceFunctions {
  // unit = `factor` times the rows [begin, end) of x scaled to length one, length: what they had.
  void (*unit_rows)(const NceShape& shape, const T* x, T factor, int64_t begin, int64_t end, T* unit, T* length);
  // Panel `panel` of the transpose of b.
  void (*pack)(const NceShape& shape, const T* b, int64_t panel, T* b_panels);
  // log sum_j exp(logit) of the rows [begin, end) and their positives' logits. At most kLogitRows rows.
  void (*forward)(const NceArgs<T>& args, int64_t begin, int64_t end, T* log_sum_exp, T* positive);
  // The gradients of the logits of the rows [begin, end), and those of the rows of a; as many rows.
  void (*backward_rows)(const NceBackwardArgs<T>& args, int64_t begin, int64_t end, T* grad_a);
  // From the gradients of the logits of panel `panel`, what they add to those of its rows of b.
  void (*backward_columns)(const NceBackwardArgs<T>& args, int64_t panel, T* grad_b);
  // grad = the gradients of the rows [begin, end) of x from those of `factor` times the unit rows, in place.
  void (*unit_rows_backward)(const NceShape& shape, const T* x, const T* length, T factor, int64_t begin, int64_t end,
                             T* grad);
};

struct NceTable {
  NceFunctions<float> of_float;
  NceFunctions<double> of_double;
};

CRANE_KERNEL_TABLE(NceTable, nce_table)

}  // namespace crane
