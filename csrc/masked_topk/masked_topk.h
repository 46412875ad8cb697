// The best unseen items of each user on the CPU.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "common/tensors.h"

namespace crane {

std::tuple<Tensor, Tensor> masked_topk(const Tensor& user, const Tensor& item, const std::optional<Tensor>& seen_rowptr,
                                       const std::optional<Tensor>& seen_col, int64_t k);

}  // namespace crane
