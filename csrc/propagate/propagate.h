// Graph propagation with layer averaging on the CPU.
#pragma once

#include "spmm/spmm.h"

namespace crane {

Tensor propagate(const Tensor& rowptr, const Tensor& col, const Tensor& value, const std::optional<Tensor>& rowptr_t,
                 const std::optional<Tensor>& col_t, const std::optional<Tensor>& value_t, const Tensor& x,
                 int64_t layers);

}  // namespace crane
