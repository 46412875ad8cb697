// Recursive cross-modal attention on the CPU, forward and backward.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "common/tensors.h"

namespace crane {

// The refined features; those that the recursions after the first started from, as far as they are `kept` (none or
// recursions - 1); and [X | 1]^T X of every recursion, (recursions, M d + 1, M d).
std::tuple<Tensor, Tensor, Tensor> recursive_cross_modal_attention(const Tensor& x, const Tensor& w_joint,
                                                                   const Tensor& b_joint, const Tensor& w_attend,
                                                                   const Tensor& w_out,
                                                                   const std::optional<Tensor>& rows,
                                                                   int64_t recursions, double scale, int64_t kept);

// The gradients of x (of no row unless `wants_x`), of w_joint and b_joint (M d + 1, d), of w_attend and w_out.
std::tuple<Tensor, Tensor, Tensor, Tensor> recursive_cross_modal_attention_backward(
    const Tensor& grad, const Tensor& x, const Tensor& w_joint, const Tensor& b_joint, const Tensor& w_attend,
    const Tensor& w_out, const std::optional<Tensor>& rows, const Tensor& between, const Tensor& moments, double scale,
    bool wants_x);

}  // namespace crane
