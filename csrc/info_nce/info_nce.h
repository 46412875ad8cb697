#pragma once

#include <optional>
#include <tuple>

#include "common/tensors.h"

namespace crane {

// The loss, and log sum_j exp(logit) of every row.
std::tuple<Tensor, Tensor> info_nce(const Tensor& a, const Tensor& b, double temperature,
                                    const std::optional<Tensor>& ids);

// The gradients of a and b.
std::tuple<Tensor, Tensor> info_nce_backward(const Tensor& grad, const Tensor& a, const Tensor& b,
                                             const Tensor& log_sum_exp, double temperature,
                                             const std::optional<Tensor>& ids);

}  // namespace crane
