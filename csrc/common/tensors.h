// Checks of tensor arguments that protect memory; the Python side has already said everything worth saying to people.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace crane {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_vector(const Tensor& t, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.is_contiguous() && t.scalar_type() == dtype, name,
                  ": expected a contiguous CPU vector of the operator's dtype");
}

// x as it is if the elements of a row follow each other, else a contiguous copy.
inline Tensor dense_rows(const Tensor& x) {
  return x.dim() == 2 && (x.stride(1) == 1 || x.size(1) <= 1) ? x : torch::stable::contiguous(x);
}

}  // namespace crane
