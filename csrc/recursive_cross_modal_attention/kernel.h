// Recursive cross-modal attention in Gram form, a range of rows at a time: see kernel.cpp. X is n x columns with
// columns = modalities * width; B (`mixed`) and V (`w_out`) are modalities x width x width.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace crane {

struct AttentionShape {
  int64_t modalities;
  int64_t width;
  int64_t columns() const { return modalities * width; }
  // Elements of B, V and C.
  int64_t weights() const { return columns() * width; }
  // Elements of [X | 1]^T X: the Gram matrix, and under it the column sums.
  int64_t moments() const { return (columns() + 1) * columns(); }
};

// The d x d computation between the passes: C_m = tanh(scale * (X_m^T [X | 1]) J), B_m = W_m C_m. The gradients of J
// and W are added to, for all recursions share them.
template <typename T>
struct MixArgs {
  AttentionShape shape;
  T scale;
  const T* moments;
  const T* joint;  // J = W_E, and under it b_E: (columns + 1) x width
  const T* w_attend;
  T* correlation;       // C
  T* mixed;             // B
  const T* grad_mixed;  // from here on: of the backward computation alone
  T* grad_joint;
  T* grad_w_attend;
  T* grad_moments;
};

// One recursion over rows: refined = X + relu(X B) V.
template <typename T>
struct RefineArgs {
  AttentionShape shape;
  const T* x;
  const int64_t* rows;  // the row of x that stands in each row of the pass; null: the same
  const T* mixed;
  const T* w_out;
  T* refined;  // may be x where rows is null
};

// Its derivative. The features that the recursion started from are those of `steps` recursions on from x. The gradient
// of the refined features is that of `arriving`, and what comes from their moments.
template <typename T>
struct RefineBackwardArgs {
  AttentionShape shape;
  const T* x;
  const int64_t* rows;
  int64_t steps;
  const T* mixed;  // of the recursions on from x, one after the other; that of this recursion is the last
  const T* w_out;
  const T* mixed_t;  // this recursion's, every matrix transposed
  const T* w_out_t;
  const T* arriving;
  const int64_t* first;  // null: row i of arriving belongs to row i; else the rows places[first[i] .. first[i + 1]) do
  const int64_t* places;
  const T* grad_moments;  // G' + G'^T and under it the gradient of the sums; null where no moments were taken
  T* grad_x;              // may be arriving where first is null; null where it is not wanted
};

template <typename T>
struct AttentionFunctions {
  // Elements of T that the functions over rows need as scratch.
  int64_t (*scratch)(const AttentionShape& shape);
  void (*mix)(const MixArgs<T>& args, int64_t modality);
  // `scratch`: 2 * weights() elements.
  void (*mix_backward)(const MixArgs<T>& args, T* scratch);
  // Adds the moments of the rows [begin, end) of x, of the Gram matrix the upper half at least.
  void (*add_moments)(const AttentionShape& shape, const T* x, int64_t begin, int64_t end, T* moments);
  // Refines the rows [begin, end), and adds the moments of the result unless `moments` is null.
  void (*refine)(const RefineArgs<T>& args, int64_t begin, int64_t end, T* moments, T* scratch);
  // Adds the gradients of B and, behind them, of V to grad_weights.
  void (*refine_backward)(const RefineBackwardArgs<T>& args, int64_t begin, int64_t end, T* grad_weights, T* scratch);
  // grad_x of features of which nothing but moments was taken.
  void (*moments_backward)(const RefineBackwardArgs<T>& args, int64_t begin, int64_t end);
};

struct AttentionTable {
  AttentionFunctions<float> of_float;
  AttentionFunctions<double> of_double;
};

CRANE_KERNEL_TABLE(AttentionTable, attention_table)

}  // namespace crane
