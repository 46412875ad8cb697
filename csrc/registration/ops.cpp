// Schemas and CPU kernels of the operators, on torch's stable ABI. Fake kernels and autograd formulas are in Python,
// beside each operation.
#include <torch/csrc/stable/library.h>

#include "masked_topk/masked_topk.h"
#include "propagate/propagate.h"
#include "spmm/spmm.h"

// The arguments *_t are the graph's transpose, for backward; they may be absent where no gradient is wanted.
STABLE_TORCH_LIBRARY(crane_kernels, m) {
  m.def(
      "spmm(Tensor rowptr, Tensor col, Tensor value, Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor x) -> "
      "Tensor");
  m.def(
      "propagate(Tensor rowptr, Tensor col, Tensor value, Tensor? rowptr_t, Tensor? col_t, Tensor? value_t, Tensor x, "
      "int layers) -> Tensor");
  m.def(
      "masked_topk(Tensor user, Tensor item, Tensor? seen_rowptr, Tensor? seen_col, int k) -> (Tensor scores, Tensor "
      "indices)");
}

STABLE_TORCH_LIBRARY_IMPL(crane_kernels, CPU, m) {
  m.impl("spmm", TORCH_BOX(&crane::spmm));
  m.impl("propagate", TORCH_BOX(&crane::propagate));
  m.impl("masked_topk", TORCH_BOX(&crane::masked_topk));
}
