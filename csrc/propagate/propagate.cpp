#include "propagate/propagate.h"

namespace crane {

// By Horner's rule: x + A x + ... + A^L x = x + A (x + A (x + ...)). Every layer adds x as it stores a row, so that no
// sum over layers is kept; two buffers, of which the result is one, are enough for any number of layers.
Tensor propagate(const Tensor& rowptr, const Tensor& col, const Tensor& value, const std::optional<Tensor>&,
                 const std::optional<Tensor>&, const std::optional<Tensor>&, const Tensor& x, int64_t layers) {
  const SpmmInputs inputs(rowptr, col, value, x);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(inputs.n_rows == x.size(0), "x: expected a row for each row of the graph");
  Tensor result = torch::stable::new_empty(x, {inputs.n_rows, x.size(1)});
  if (result.numel() == 0) return result;
  if (layers == 0) return torch::stable::copy_(result, x);
  Tensor other = layers == 1 ? result : torch::stable::new_empty(result, {inputs.n_rows, x.size(1)});
  const Schedule schedule(rowptr.const_data_ptr<int64_t>(), inputs.n_rows);
  inputs.visit([&](const auto& functions, auto args) {
    using T = decltype(args.scale);
    args.base = args.x;
    args.base_stride = args.x_stride;
    for (int64_t layer = 1; layer <= layers; ++layer) {
      // The last layer writes the result, the one before the other buffer, and so on backwards.
      args.y = static_cast<T*>(((layers - layer) % 2 == 0 ? result : other).mutable_data_ptr());
      args.scale = layer == layers ? T(1) / static_cast<T>(layers + 1) : T(1);
      spmm_run(functions, args, schedule);
      args.x = args.y;
      args.x_stride = args.width;
    }
  });
  return result;
}

}  // namespace crane
