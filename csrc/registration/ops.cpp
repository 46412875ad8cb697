// Schemas and CPU kernels of the operators, on torch's stable ABI. Fake kernels and autograd formulas are in Python,
// beside each operation.
#include <torch/csrc/stable/library.h>

#include "graph/graph.h"
#include "info_nce/info_nce.h"
#include "items_attention/items_attention.h"
#include "masked_topk/masked_topk.h"
#include "modality_attention/modality_attention.h"
#include "propagate/propagate.h"
#include "recursive_cross_modal_attention/recursive_cross_modal_attention.h"
#include "spmm/spmm.h"

// Sparse matrices A, in compressed sparse rows. rowptr is int64; col, col_t and order int32 or int64; value has the
// dtype of what it multiplies. The arrays *_t are A^T in the same form, with value_t = value[order]: products with A^T
// take value_t if it is given, else value[order], and without the arrays they sort the edges themselves. Gradients go
// to value and never to value_t, which is for values that are not learned.
//
// rows (int64 or int32, in any order, repetitions allowed): only these rows of the result; A[rows] below, A without.
//   spmm       A[rows] x, or the mean over each row's edges in place of their sum
//   spmm_t     A[rows]^T grad, n_cols rows
//   spmm_max   the largest value[e] * x[col[e]] of each of rows, and which e (the first of equals) that is, or 0 and -1
//   sddmm      the dot products of grad[k] and x[col[e]] for each edge e of row rows[k], summed over k; 0 elsewhere
//   propagate  the mean of x, A x, ..., A^layers x, and propagate_t the product with the transpose of that matrix
//   sort_edges edges of any order as rowptr, col, order and the number of repeated places
//   transpose  rowptr_t, col_t and order
STABLE_TORCH_LIBRARY(crane_kernels, m) {
  m.def(
      "spmm(Tensor rowptr, Tensor col, Tensor value, Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor? order, "
      "Tensor x, Tensor? rows, bool mean) -> Tensor");
  m.def(
      "spmm_t(Tensor rowptr, Tensor col, Tensor value, Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor? "
      "order, "
      "Tensor grad, Tensor? rows, int n_cols) -> Tensor");
  m.def("spmm_max(Tensor rowptr, Tensor col, Tensor value, Tensor x, Tensor? rows) -> (Tensor y, Tensor argmax)");
  m.def(
      "sddmm(Tensor rowptr, Tensor col, Tensor? rowptr_t, Tensor? col_t, Tensor? order, Tensor grad, Tensor x, Tensor? "
      "rows) -> Tensor");
  m.def(
      "propagate(Tensor rowptr, Tensor col, Tensor value, Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor x, "
      "int layers, Tensor? rows) -> Tensor");
  m.def(
      "propagate_t(Tensor rowptr, Tensor col, Tensor value, Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor "
      "grad, int layers, Tensor? rows) -> Tensor");
  m.def(
      "sort_edges(Tensor row, Tensor col, int n_rows, int n_cols) -> (Tensor rowptr, Tensor col, Tensor order, Tensor "
      "repeats)");
  m.def("transpose(Tensor rowptr, Tensor col, int n_cols) -> (Tensor rowptr_t, Tensor col_t, Tensor order)");
  m.def(
      "masked_topk(Tensor user, Tensor item, Tensor? seen_rowptr, Tensor? seen_col, int k) -> (Tensor scores, Tensor "
      "indices)");
  m.def("info_nce(Tensor a, Tensor b, float temperature, Tensor? ids) -> (Tensor loss, Tensor log_sum_exp)");
  m.def(
      "info_nce_backward(Tensor grad, Tensor a, Tensor b, Tensor log_sum_exp, float temperature, Tensor? ids) -> "
      "(Tensor grad_a, Tensor grad_b)");
  m.def(
      "modality_attention(Tensor tokens, Tensor in_proj_weight, Tensor? in_proj_bias, Tensor out_proj_weight, Tensor? "
      "out_proj_bias, int num_heads) -> Tensor");
  m.def(
      "modality_attention_backward(Tensor grad, Tensor tokens, Tensor in_proj_weight, Tensor? in_proj_bias, Tensor "
      "out_proj_weight, Tensor? out_proj_bias, int num_heads) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("items_attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)");
  m.def(
      "items_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor log_sum) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "recursive_cross_modal_attention(Tensor x, Tensor w_joint, Tensor b_joint, Tensor w_attend, Tensor w_out, "
      "Tensor? rows, int recursions, float scale, int kept) -> (Tensor result, Tensor between, Tensor moments)");
  m.def(
      "recursive_cross_modal_attention_backward(Tensor grad, Tensor x, Tensor w_joint, Tensor b_joint, Tensor "
      "w_attend, Tensor w_out, Tensor? rows, Tensor between, Tensor moments, float scale, bool wants_x) -> (Tensor "
      "grad_x, Tensor grad_joint, Tensor grad_w_attend, Tensor grad_w_out)");
}

STABLE_TORCH_LIBRARY_IMPL(crane_kernels, CPU, m) {
  m.impl("spmm", TORCH_BOX(&crane::spmm));
  m.impl("spmm_t", TORCH_BOX(&crane::spmm_t));
  m.impl("spmm_max", TORCH_BOX(&crane::spmm_max));
  m.impl("sddmm", TORCH_BOX(&crane::sddmm));
  m.impl("propagate", TORCH_BOX(&crane::propagate));
  m.impl("propagate_t", TORCH_BOX(&crane::propagate_t));
  m.impl("sort_edges", TORCH_BOX(&crane::sort_edges));
  m.impl("transpose", TORCH_BOX(&crane::transpose));
  m.impl("masked_topk", TORCH_BOX(&crane::masked_topk));
  m.impl("info_nce", TORCH_BOX(&crane::info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&crane::info_nce_backward));
  m.impl("modality_attention", TORCH_BOX(&crane::modality_attention));
  m.impl("modality_attention_backward", TORCH_BOX(&crane::modality_attention_backward));
  m.impl("items_attention", TORCH_BOX(&crane::items_attention));
  m.impl("items_attention_backward", TORCH_BOX(&crane::items_attention_backward));
  m.impl("recursive_cross_modal_attention", TORCH_BOX(&crane::recursive_cross_modal_attention));
  m.impl("recursive_cross_modal_attention_backward", TORCH_BOX(&crane::recursive_cross_modal_attention_backward));
}
