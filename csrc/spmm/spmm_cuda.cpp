#include "spmm/spmm_cuda_tensors.h"

namespace crane::cuda {

namespace {

Tensor product(const Csr& a, const Tensor& x_in, Reduce reduce) {
  const Queue queue(x_in);
  const Tensor x = dense_rows(x_in);
  Tensor y = torch::stable::new_empty(x, {a.n_rows, x.size(1)});
  Spmm call = call_of(a, x, y);
  call.reduce = reduce;
  run(call, x, queue);
  return y;
}

}  // namespace

Tensor spmm_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional&, const Optional&,
                    const Optional&, const Optional&, const Tensor& x, const Optional& rows, bool mean) {
  STD_TORCH_CHECK(!rows, "rows: expected none on CUDA");
  return product(csr_of(rowptr, col, value, x), x, mean ? Reduce::kMean : Reduce::kSum);
}

Tensor spmm_t_tensors(const Tensor&, const Tensor&, const Tensor&, const Optional& rowptr_t, const Optional& col_t,
                      const Optional& value_t, const Optional&, const Tensor& grad, const Optional& rows, int64_t) {
  STD_TORCH_CHECK(!rows && rowptr_t && col_t && value_t, "rows: expected none on CUDA, and the transpose");
  return product(csr_of(*rowptr_t, *col_t, *value_t, grad), grad, Reduce::kSum);
}

}  // namespace crane::cuda
