// Graph propagation with layer averaging on the CPU.
#pragma once

#include "spmm/spmm.h"

namespace crane {

Tensor propagate(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                 const Optional& col_t, const Optional& value_t, const Tensor& x, int64_t layers, const Optional& rows);

Tensor propagate_t(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                   const Optional& col_t, const Optional& value_t, const Tensor& grad, int64_t layers,
                   const Optional& rows);

}  // namespace crane
