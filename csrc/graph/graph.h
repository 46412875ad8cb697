// Building graphs on the CPU.
#pragma once

#include <tuple>

#include "common/tensors.h"

namespace crane {

// Edges (row[e], col[e]), both int64 and in range, in CSR order: rowptr, the columns (ascending within a row), which of
// the given edges each one is (those of one place in the order given), and how many there are at the place of the one
// before, as a vector of one int64.
std::tuple<Tensor, Tensor, Tensor, Tensor> sort_edges(const Tensor& row, const Tensor& col, int64_t n_rows,
                                                      int64_t n_cols);

}  // namespace crane
