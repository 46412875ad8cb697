#include "spmm/spmm_cuda_tensors.h"

namespace crane::cuda {

// By Horner's rule, as on the CPU: x + A x + ... + A^L x = x + A (x + A (x + ...)).
Tensor propagate_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const std::optional<Tensor>&,
                         const std::optional<Tensor>&, const std::optional<Tensor>&, const Tensor& x_in,
                         int64_t layers) {
  const Csr a = csr_of(rowptr, col, value, x_in);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(a.n_rows == x_in.size(0), "x: expected a row for each row of the graph");
  const Queue queue(x_in);
  const Tensor x = dense_rows(x_in);
  Tensor result = torch::stable::new_empty(x, {a.n_rows, x.size(1)});
  if (layers == 0) return torch::stable::copy_(result, x);
  const Tensor other = layers == 1 ? result : torch::stable::new_empty(x, {a.n_rows, x.size(1)});
  Tensor from = x;
  for (int64_t layer = 1; layer <= layers; ++layer) {
    // The last layer writes the result, the one before the other buffer, and so on backwards.
    const Tensor to = (layers - layer) % 2 == 0 ? result : other;
    Spmm call = call_of(a, from, to);
    call.base = x.const_data_ptr();
    call.base_stride = x.stride(0);
    call.scale = layer == layers ? 1.0 / static_cast<double>(layers + 1) : 1.0;
    run(call, x, queue);
    from = to;
  }
  return result;
}

}  // namespace crane::cuda
