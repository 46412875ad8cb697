// Attention over the tokens of each row, then their mean, on the CPU.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "common/tensors.h"

namespace crane {

Tensor modality_attention(const Tensor& tokens, const Tensor& in_proj_weight, const std::optional<Tensor>& in_proj_bias,
                          const Tensor& out_proj_weight, const std::optional<Tensor>& out_proj_bias, int64_t num_heads);

// The gradients of tokens, in_proj_weight, in_proj_bias, out_proj_weight and out_proj_bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> modality_attention_backward(
    const Tensor& grad, const Tensor& tokens, const Tensor& in_proj_weight, const std::optional<Tensor>& in_proj_bias,
    const Tensor& out_proj_weight, const std::optional<Tensor>& out_proj_bias, int64_t num_heads);

}  // namespace crane
