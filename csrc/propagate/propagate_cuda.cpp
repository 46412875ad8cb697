#include "propagate/propagate_cuda.h"

#include "spmm/spmm_cuda_tensors.h"

namespace crane::cuda {

Tensor propagate_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional&, const Optional&,
                         const Optional&, const Tensor& x_in, int64_t layers, const Optional& rows) {
  STD_TORCH_CHECK(!rows, "rows: expected none on CUDA");
  const Csr a = csr_of(rowptr, col, value, x_in);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(a.n_rows == x_in.size(0), "x: expected a row for each row of the graph");
  const Queue queue(x_in);
  const Tensor x = dense_rows(x_in);
  const Tensor y = torch::stable::new_empty(x, {a.n_rows, x.size(1)});
  const Propagate call{a,           type_of(x), x.const_data_ptr(), y.mutable_data_ptr(), nullptr, a.n_rows, x.size(1),
                       x.stride(0), layers};
  const Tensor workspace = device_bytes(x, propagate_workspace(call));
  check_launch(propagate(call, workspace.mutable_data_ptr(), queue.stream()));
  return y;
}

Tensor propagate_t_tensors(const Tensor&, const Tensor&, const Tensor&, const Optional& rowptr_t, const Optional& col_t,
                           const Optional& value_t, const Tensor& grad, int64_t layers, const Optional& rows) {
  STD_TORCH_CHECK(rowptr_t && col_t && value_t, "rowptr_t, col_t and value_t: expected the transpose on CUDA");
  return propagate_tensors(*rowptr_t, *col_t, *value_t, {}, {}, {}, grad, layers, rows);
}

}  // namespace crane::cuda
