#include "spmm/spmm.h"

namespace crane {

Schedule::Schedule(const int64_t* rowptr, int64_t n_rows) {
  // Row i covers the weights [rowptr[i] + i, rowptr[i + 1] + i + 1): its edges, and one for itself. A task owns the
  // rows that begin within its kTaskSize weights; a hub is longer than that, so it covers some task's first weight.
  const auto weight = [rowptr](int64_t row) { return rowptr[row] + row; };
  const int64_t n_tasks = (weight(n_rows) + kTaskSize - 1) / kTaskSize;
  int64_t begin = 0;
  for (int64_t task = 0; task < n_tasks; ++task) {
    const int64_t limit = (task + 1) * kTaskSize;
    int64_t low = begin, high = n_rows;  // the first row that begins at or beyond the limit
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (weight(middle) < limit) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == begin) continue;
    const int64_t last = low - 1;
    const bool hub = rowptr[low] - rowptr[last] > kTaskSize;
    const int64_t end = hub ? last : low;
    if (begin < end) {
      row_begin.push_back(begin);
      row_end.push_back(end);
    }
    if (hub) {
      const int64_t first = static_cast<int64_t>(pieces.size());
      for (int64_t e = rowptr[last]; e < rowptr[low]; e += kTaskSize) {
        pieces.push_back({e, std::min(e + kTaskSize, rowptr[low])});
      }
      hubs.push_back({last, first, static_cast<int64_t>(pieces.size())});
    }
    begin = low;
  }
}

SpmmInputs::SpmmInputs(const Tensor& rowptr_in, const Tensor& col_in, const Tensor& value_in, const Tensor& x_in)
    : rowptr(rowptr_in), col(col_in), value(value_in), x(dense_rows(x_in)) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2, "x: expected a CPU matrix");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x: expected float32 or float64");
  wide = col.scalar_type() == ScalarType::Long;
  check_vector(rowptr, ScalarType::Long, "rowptr");
  check_vector(col, wide ? ScalarType::Long : ScalarType::Int, "col");
  check_vector(value, x.scalar_type(), "value");
  STD_TORCH_CHECK(rowptr.size(0) >= 1, "rowptr: expected at least one entry");
  n_rows = rowptr.size(0) - 1;
  const int64_t* pointers = rowptr.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(pointers[0] == 0 && pointers[n_rows] == col.size(0) && col.size(0) == value.size(0),
                  "rowptr, col and value: expected the same number of edges");
}

Tensor spmm(const Tensor& rowptr, const Tensor& col, const Tensor& value, const std::optional<Tensor>&,
            const std::optional<Tensor>&, const std::optional<Tensor>&, const Tensor& x) {
  const SpmmInputs inputs(rowptr, col, value, x);
  Tensor y = torch::stable::new_empty(x, {inputs.n_rows, x.size(1)});
  if (y.numel() == 0) return y;
  const Schedule schedule(rowptr.const_data_ptr<int64_t>(), inputs.n_rows);
  inputs.visit([&](const auto& functions, auto args) {
    args.y = static_cast<decltype(args.y)>(y.mutable_data_ptr());
    spmm_run(functions, args, schedule);
  });
  return y;
}

}  // namespace crane
