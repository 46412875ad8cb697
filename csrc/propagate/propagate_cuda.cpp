#include "propagate/propagate_cuda.h"

#include "spmm/spmm_cuda_tensors.h"

namespace crane::cuda {

Tensor propagate_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional&, const Optional&,
                         const Optional&, const Tensor& x_in, int64_t layers, const Optional& rows_in) {
  const Csr a = csr_of(rowptr, col, value, x_in);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(a.n_rows == x_in.size(0), "x: expected a row for each row of the graph");
  const Queue queue(x_in);
  const Tensor x = dense_rows(x_in);
  const Optional rows = rows_in ? Optional(row_indices(*rows_in, x)) : std::nullopt;
  const int64_t n_out = rows ? rows->size(0) : a.n_rows;
  const Tensor y = torch::stable::new_empty(x, {n_out, x.size(1)});
  const Propagate call{a,
                       type_of(x),
                       x.const_data_ptr(),
                       y.mutable_data_ptr(),
                       rows ? rows->const_data_ptr<int64_t>() : nullptr,
                       n_out,
                       x.size(1),
                       x.stride(0),
                       layers};
  const Tensor workspace = device_bytes(x, propagate_workspace(call));
  check_launch(propagate(call, workspace.mutable_data_ptr(), queue.stream()));
  return y;
}

Tensor propagate_t_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                           const Optional& col_t, const Optional& value_t, const Tensor& grad_in, int64_t layers,
                           const Optional& rows) {
  STD_TORCH_CHECK(rowptr_t && col_t && value_t, "rowptr_t, col_t and value_t: expected the transpose on CUDA");
  if (!rows) return propagate_tensors(*rowptr_t, *col_t, *value_t, {}, {}, {}, grad_in, layers, rows);
  const Csr t = csr_of(*rowptr_t, *col_t, *value_t, grad_in);
  const Csr a = csr_of(rowptr, col, grad_in);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(t.n_rows == a.n_rows, "rowptr_t: expected that of the transpose");
  const Queue queue(grad_in);
  const Tensor grad = dense_rows(grad_in);
  STD_TORCH_CHECK(grad.size(0) == rows->size(0), "grad: expected a row for each of rows");
  const SortedRows wanted(*rows, grad);
  const Tensor y = torch::stable::new_empty(grad, {a.n_rows, grad.size(1)});
  const PropagateT call{
      a,     t, wanted.list(), type_of(grad), grad.const_data_ptr(), y.mutable_data_ptr(), grad.size(1), grad.stride(0),
      layers};
  const Tensor workspace = device_bytes(grad, propagate_t_workspace(call));
  check_launch(propagate_t(call, workspace.mutable_data_ptr(), queue.stream()));
  return y;
}

}  // namespace crane::cuda
