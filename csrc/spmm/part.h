// Products with some of the rows of a graph: what spmm's and propagate's rows share.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "spmm/row_set.h"
#include "spmm/spmm.h"

namespace crane {

// Calls f with the elements of an integer vector.
template <typename F>
void visit_integers(const Tensor& t, const F& f) {
  t.scalar_type() == ScalarType::Long ? f(t.const_data_ptr<int64_t>()) : f(t.const_data_ptr<int32_t>());
}

template <typename T>
T one() {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {0x3f80};
  } else if constexpr (std::is_same_v<T, Half>) {
    return {0x3c00};
  } else {
    return 1;
  }
}

// For each row of a set, the sum of the rows of g that stand for it in `list`, divided by `divisor`: a product with a
// matrix of ones.
template <typename T, typename Index>
Tensor sum_repeats(const SpmmFunctions<T, Index>& functions, const RowSet<Index>& set, const std::vector<int64_t>& list,
                   const Tensor& g, int64_t divisor = 1) {
  const int64_t n = static_cast<int64_t>(list.size());
  std::vector<int64_t> rowptr(set.size() + 1);
  for (int64_t row : list) ++rowptr[set.position[row] + 1];
  for (int64_t k = 0; k < set.size(); ++k) rowptr[k + 1] += rowptr[k];
  std::vector<Index> col(n);
  std::vector<int64_t> next(rowptr.begin(), rowptr.end() - 1);
  for (int64_t k = 0; k < n; ++k) col[next[set.position[list[k]]]++] = static_cast<Index>(k);
  const std::vector<T> ones(n, one<T>());
  Tensor sums = new_matrix(g, set.size(), g.size(1));
  SpmmArgs<T, Index> args{};
  args.rowptr = rowptr.data();
  args.col = col.data();
  args.value = ones.data();
  args.x = static_cast<const T*>(g.const_data_ptr());
  args.y = static_cast<T*>(sums.mutable_data_ptr());
  args.n_rows = set.size();
  args.width = g.size(1);
  args.x_stride = g.stride(0);
  args.scale = 1 / static_cast<Accumulator<T>>(divisor);
  args.read_next = true;
  spmm_run(functions, args, Part<Index>{nullptr, set.size()});
  return sums;
}

}  // namespace crane
