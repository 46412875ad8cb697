// Sparse times dense on CUDA, for operators built on it.
#pragma once

#include <optional>
#include <tuple>

#include "common/cuda_tensors.h"
#include "spmm/spmm_cuda.h"

namespace crane::cuda {

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "x: expected float32, float64, float16 or bfloat16");
  }
}

using Optional = std::optional<Tensor>;

// The arrays of a graph without its values, after their checks against a matrix whose rows have its device. What rowptr
// and col hold is on the device and is believed.
inline Csr csr_of(const Tensor& rowptr, const Tensor& col, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda() && x.dim() == 2, "x: expected a CUDA matrix");
  const bool wide = col.scalar_type() == ScalarType::Long;
  check_vector(rowptr, ScalarType::Long, x, "rowptr");
  check_vector(col, wide ? ScalarType::Long : ScalarType::Int, x, "col");
  STD_TORCH_CHECK(rowptr.size(0) >= 1, "rowptr: expected at least one entry");
  return {rowptr.const_data_ptr<int64_t>(), col.const_data_ptr(), nullptr, rowptr.size(0) - 1, col.size(0), wide};
}

// The same with its values, which have the dtype of the matrix.
inline Csr csr_of(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Tensor& x) {
  Csr a = csr_of(rowptr, col, x);
  check_vector(value, x.scalar_type(), x, "value");
  STD_TORCH_CHECK(col.size(0) == value.size(0), "col and value: expected the same number of edges");
  a.value = value.const_data_ptr();
  return a;
}

// y = A x, everything else as when left alone. x must have dense rows.
inline Spmm call_of(const Csr& a, const Tensor& x, const Tensor& y) {
  Spmm call{};
  call.a = a;
  call.type = type_of(x);
  call.x = x.const_data_ptr();
  call.y = y.mutable_data_ptr();
  call.n_out = y.size(0);
  call.width = x.size(1);
  call.x_stride = x.stride(0);
  call.scale = 1;
  return call;
}

inline void run(const Spmm& call, const Tensor& x, const Queue& queue) {
  const Tensor workspace = device_bytes(x, spmm_workspace(call));
  check_launch(spmm(call, workspace.mutable_data_ptr(), queue.stream()));
}

// Rows that are asked for, as contiguous int64.
inline Tensor row_indices(const Tensor& rows, const Tensor& x) {
  const Tensor wide = torch::stable::contiguous(torch::stable::to(rows, ScalarType::Long));
  check_vector(wide, ScalarType::Long, x, "rows");
  return wide;
}

// The same with their places, in ascending order.
struct SortedRows {
  Tensor sorted, place;

  SortedRows(const Tensor& rows, const Tensor& x);
  RowList list() const { return {sorted.const_data_ptr<int64_t>(), place.const_data_ptr<int64_t>(), sorted.size(0)}; }
};

// The values of A^T: as they are given, or those of A by `order`.
Tensor transposed_values(const Tensor& value, const Optional& value_t, const Optional& order, const Tensor& x);

Tensor spmm_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                    const Optional& col_t, const Optional& value_t, const Optional& order, const Tensor& x,
                    const Optional& rows, bool mean);

Tensor spmm_t_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                      const Optional& col_t, const Optional& value_t, const Optional& order, const Tensor& grad,
                      const Optional& rows, int64_t n_cols);

std::tuple<Tensor, Tensor> spmm_max_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value,
                                            const Tensor& x, const Optional& rows);

Tensor sddmm_tensors(const Tensor& rowptr, const Tensor& col, const Optional& rowptr_t, const Optional& col_t,
                     const Optional& order, const Tensor& grad, const Tensor& x, const Optional& rows);

Tensor propagate_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                         const Optional& col_t, const Optional& value_t, const Tensor& x, int64_t layers,
                         const Optional& rows);

Tensor propagate_t_tensors(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                           const Optional& col_t, const Optional& value_t, const Tensor& grad, int64_t layers,
                           const Optional& rows);

}  // namespace crane::cuda
