// Attention of all rows to all rows, within each batch entry and head, on the CPU.
#pragma once

#include <tuple>

#include "common/tensors.h"

namespace crane {

// Query, key and value: (batch, heads, n, width) float32. Returns the result of that shape, and (batch, heads, n), the
// logarithms to base 2 of the sums of exponentials of the scores.
std::tuple<Tensor, Tensor> items_attention(const Tensor& query, const Tensor& key, const Tensor& value);

// The gradients of query, key and value.
std::tuple<Tensor, Tensor, Tensor> items_attention_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                            const Tensor& value, const Tensor& output,
                                                            const Tensor& log_sum);

}  // namespace crane
