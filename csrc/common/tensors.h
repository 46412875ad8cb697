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

// The integer type that can count to n.
inline ScalarType index_type(int64_t n) { return n <= INT32_MAX ? ScalarType::Int : ScalarType::Long; }

// Calls f with a pointer of the type that t, of int32 or int64, has.
template <typename F>
void visit_writable(Tensor& t, const F& f) {
  t.scalar_type() == ScalarType::Long ? f(t.mutable_data_ptr<int64_t>()) : f(t.mutable_data_ptr<int32_t>());
}

// x as it is if the elements of a row follow each other, else a contiguous copy.
inline Tensor dense_rows(const Tensor& x) {
  return x.dim() == 2 && (x.stride(1) == 1 || x.size(1) <= 1) ? x : torch::stable::contiguous(x);
}

}  // namespace crane
