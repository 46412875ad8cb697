#include <array>

#include "spmm/spmm_cuda_tensors.h"

namespace crane::cuda {

namespace {

Tensor output(const Csr& a, const Tensor& x, const Optional& rows) {
  return torch::stable::new_empty(x, {rows ? rows->size(0) : a.n_rows, x.size(1)});
}

// What `reduce` makes of A x, in all rows or some.
Tensor product(const Csr& a, const Tensor& x_in, const Optional& rows_in, Reduce reduce, int64_t* argmax = nullptr) {
  const Queue queue(x_in);
  const Tensor x = dense_rows(x_in);
  const Optional rows = rows_in ? Optional(row_indices(*rows_in, x)) : std::nullopt;
  Tensor y = output(a, x, rows);
  Spmm call = call_of(a, x, y);
  call.rows = rows ? rows->const_data_ptr<int64_t>() : nullptr;
  call.reduce = reduce;
  call.argmax = argmax;
  run(call, x, queue);
  return y;
}

}  // namespace

SortedRows::SortedRows(const Tensor& rows, const Tensor& x) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(row_indices(rows, x)),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  sorted = torch::stable::detail::to<Tensor>(stack[0]);
  place = torch::stable::detail::to<Tensor>(stack[1]);
}

Tensor transposed_values(const Tensor& value, const Optional& value_t, const Optional& order, const Tensor& x) {
  if (value_t) return *value_t;
  STD_TORCH_CHECK(order.has_value(), "value_t or order: expected one of them on CUDA");
  const bool wide = order->scalar_type() == ScalarType::Long;
  check_vector(*order, wide ? ScalarType::Long : ScalarType::Int, x, "order");
  STD_TORCH_CHECK(order->size(0) == value.size(0), "order: expected an entry for each edge");
  const Queue queue(x);
  Tensor result = torch::stable::new_empty(value, {value.size(0)});
  check_launch(reorder(value.const_data_ptr(), order->const_data_ptr(), wide, type_of(value), value.size(0),
                       result.mutable_data_ptr(), queue.stream()));
  return result;
}

Tensor spmm_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional&, const Optional&,
                    const Optional&, const Optional&, const Tensor& x, const Optional& rows, bool mean) {
  return product(csr_of(rowptr, col, value, x), x, rows, mean ? Reduce::kMean : Reduce::kSum);
}

Tensor spmm_t_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                      const Optional& col_t, const Optional& value_t, const Optional& order, const Tensor& grad_in,
                      const Optional& rows, int64_t n_cols) {
  STD_TORCH_CHECK(rowptr_t && col_t, "rowptr_t and col_t: expected the transpose on CUDA");
  const Tensor values = transposed_values(value, value_t, order, grad_in);
  const Csr t = csr_of(*rowptr_t, *col_t, values, grad_in);
  STD_TORCH_CHECK(t.n_rows == n_cols, "rowptr_t: expected an entry for each of n_cols, and one more");
  if (!rows) return product(t, grad_in, std::nullopt, Reduce::kSum);
  const Queue queue(grad_in);
  const Tensor grad = dense_rows(grad_in);
  STD_TORCH_CHECK(grad.size(0) == rows->size(0), "grad: expected a row for each of rows");
  const SortedRows wanted(*rows, grad);
  Tensor y = torch::stable::new_empty(grad, {n_cols, grad.size(1)});
  const SpmmT call{csr_of(rowptr, col, grad),
                   t,
                   wanted.list(),
                   type_of(grad),
                   grad.const_data_ptr(),
                   y.mutable_data_ptr(),
                   grad.size(1),
                   grad.stride(0)};
  const Tensor workspace = device_bytes(grad, spmm_t_workspace(call));
  check_launch(spmm_t(call, workspace.mutable_data_ptr(), queue.stream()));
  return y;
}

std::tuple<Tensor, Tensor> spmm_max_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value,
                                            const Tensor& x, const Optional& rows) {
  const Csr a = csr_of(rowptr, col, value, x);
  const Queue queue(x);
  Tensor argmax = torch::stable::new_empty(x, {rows ? rows->size(0) : a.n_rows, x.size(1)}, ScalarType::Long);
  return {product(a, x, rows, Reduce::kMax, argmax.mutable_data_ptr<int64_t>()), argmax};
}

Tensor sddmm_tensors(const Tensor& rowptr, const Tensor& col, const Optional&, const Optional&, const Optional&,
                     const Tensor& grad_in, const Tensor& x_in, const Optional& rows) {
  STD_TORCH_CHECK(x_in.is_cuda() && x_in.dim() == 2, "x: expected a CUDA matrix");
  STD_TORCH_CHECK(grad_in.dim() == 2 && grad_in.scalar_type() == x_in.scalar_type() && grad_in.size(1) == x_in.size(1),
                  "grad: expected the dtype and width of x");
  const Queue queue(x_in);
  const Tensor x = dense_rows(x_in);
  Tensor grad = dense_rows(grad_in);
  const Csr a = csr_of(rowptr, col, x);
  STD_TORCH_CHECK(grad.size(0) == (rows ? rows->size(0) : a.n_rows), "grad: expected a row for each computed row");
  Tensor out = torch::stable::new_empty(x, {a.n_edges});
  Optional mask;
  if (rows) {
    const SortedRows wanted(*rows, x);
    mask = torch::stable::new_zeros(x, {a.n_rows}, ScalarType::Byte);
    const Tensor sums = torch::stable::new_empty(x, {a.n_rows, x.size(1)});
    check_launch(sum_rows({wanted.list(), a.n_rows, type_of(x), grad.const_data_ptr(), sums.mutable_data_ptr(),
                           mask->mutable_data_ptr<uint8_t>(), x.size(1), grad.stride(0), 1},
                          queue.stream()));
    grad = sums;
  }
  check_launch(sddmm({a, type_of(x), grad.const_data_ptr(), mask ? mask->const_data_ptr<uint8_t>() : nullptr,
                      x.const_data_ptr(), out.mutable_data_ptr(), x.size(1), grad.stride(0), x.stride(0), false},
                     queue.stream()));
  return out;
}

}  // namespace crane::cuda
