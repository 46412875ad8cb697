#include "info_nce/info_nce.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "info_nce/kernel.h"

namespace crane {

namespace {

constexpr int64_t kBackwardRows = 8 * kLogitRows;  // whose gradients of logits are in memory together

// The arguments, checked, contiguous and scaled to length one.
template <typename T>
struct UnitRows {
  NceArgs<T> args;
  std::vector<T> a, b, b_panels, a_length, b_length;

  UnitRows(const NceFunctions<T>& functions, const NceShape& shape, const T* a_in, const T* b_in, T inverse,
           const int64_t* ids)
      : a(shape.n * shape.width),
        b(shape.n * shape.width),
        b_panels(shape.n * shape.width),
        a_length(shape.n),
        b_length(shape.n) {
    args = {shape, a.data(), b.data(), b_panels.data(), ids};
    parallel_tasks(shape.panels(), [&](int64_t panel) {
      const int64_t begin = panel * kPanelColumns, end = std::min(shape.n, begin + kPanelColumns);
      functions.unit_rows(shape, a_in, inverse, begin, end, a.data(), a_length.data());
      functions.unit_rows(shape, b_in, 1, begin, end, b.data(), b_length.data());
      functions.pack(shape, b.data(), panel, b_panels.data());
    });
  }
};

void check(const Tensor& a, const Tensor& b, const std::optional<Tensor>& ids) {
  STD_TORCH_CHECK(a.is_cpu() && a.dim() == 2 && a.size(0) > 0 &&
                      (a.scalar_type() == ScalarType::Float || a.scalar_type() == ScalarType::Double),
                  "a: expected a float32 or float64 CPU matrix with rows");
  STD_TORCH_CHECK(b.is_cpu() && b.dim() == 2 && b.scalar_type() == a.scalar_type() && b.size(0) == a.size(0) &&
                      b.size(1) == a.size(1),
                  "b: expected a CPU matrix like a");
  if (ids.has_value()) {
    check_vector(*ids, ScalarType::Long, "ids");
    STD_TORCH_CHECK(ids->size(0) == a.size(0), "ids: expected a label for each row");
  }
}

const int64_t* data(const std::optional<Tensor>& ids) {
  return ids.has_value() ? ids->const_data_ptr<int64_t>() : nullptr;
}

// Calls f with the functions of the dtype, and a zero of it.
template <typename F>
void visit(const Tensor& a, const F& f) {
  if (a.scalar_type() == ScalarType::Float) {
    f(nce_table().of_float, float{});
  } else {
    f(nce_table().of_double, double{});
  }
}

// Calls f(begin, end) for blocks of the rows [begin, end).
template <typename F>
void for_row_blocks(int64_t begin, int64_t end, const F& f) {
  parallel_tasks((end - begin + kLogitRows - 1) / kLogitRows, [&](int64_t task) {
    const int64_t first = begin + task * kLogitRows;
    f(first, std::min(end, first + kLogitRows));
  });
}

template <typename T>
T mean_loss(int64_t n, const T* log_sum_exp, const T* positive) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(log_sum_exp[i]) - static_cast<double>(positive[i]);
  return static_cast<T>(sum / static_cast<double>(n));
}

}  // namespace

std::tuple<Tensor, Tensor> info_nce(const Tensor& a_in, const Tensor& b_in, double temperature,
                                    const std::optional<Tensor>& ids) {
  check(a_in, b_in, ids);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const NceShape shape{a.size(0), a.size(1)};
  const Tensor loss = torch::stable::new_empty(a, {}), log_sum_exp = torch::stable::new_empty(a, {shape.n});
  visit(a, [&](const auto& functions, auto zero) {
    using T = decltype(zero);
    const UnitRows<T> rows(functions, shape, a.const_data_ptr<T>(), b.const_data_ptr<T>(),
                           static_cast<T>(1 / temperature), data(ids));
    std::vector<T> positive(shape.n);
    T* result = log_sum_exp.mutable_data_ptr<T>();
    for_row_blocks(0, shape.n, [&](int64_t begin, int64_t end) {
      functions.forward(rows.args, begin, end, result, positive.data());
    });
    *loss.mutable_data_ptr<T>() = mean_loss(shape.n, result, positive.data());
  });
  return {loss, log_sum_exp};
}

std::tuple<Tensor, Tensor> info_nce_backward(const Tensor& grad, const Tensor& a_in, const Tensor& b_in,
                                             const Tensor& log_sum_exp, double temperature,
                                             const std::optional<Tensor>& ids) {
  check(a_in, b_in, ids);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const NceShape shape{a.size(0), a.size(1)};
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == a.scalar_type() && grad.numel() == 1,
                  "grad: expected a CPU scalar of the dtype of a");
  check_vector(log_sum_exp, a.scalar_type(), "log_sum_exp");
  STD_TORCH_CHECK(log_sum_exp.size(0) == shape.n, "log_sum_exp: expected a number for each row");
  const Tensor grad_a = torch::stable::new_empty(a, {shape.n, shape.width});
  const Tensor grad_b = torch::stable::new_zeros(a, {shape.n, shape.width});
  visit(a, [&](const auto& functions, auto zero) {
    using T = decltype(zero);
    const T inverse = static_cast<T>(1 / temperature);
    const UnitRows<T> rows(functions, shape, a.const_data_ptr<T>(), b.const_data_ptr<T>(), inverse, data(ids));
    std::vector<T> logits(std::min(shape.n, kBackwardRows) * shape.panels() * kPanelStride);
    NceBackwardArgs<T> args{rows.args,    log_sum_exp.const_data_ptr<T>(), *grad.const_data_ptr<T>() / shape.n, 0, 0,
                            logits.data()};
    T *of_a = grad_a.mutable_data_ptr<T>(), *of_b = grad_b.mutable_data_ptr<T>();
    for (int64_t first = 0; first < shape.n; first = args.end_row) {
      args.first_row = first;
      args.end_row = std::min(shape.n, first + kBackwardRows);
      for_row_blocks(args.first_row, args.end_row,
                     [&](int64_t begin, int64_t end) { functions.backward_rows(args, begin, end, of_a); });
      parallel_tasks(shape.panels(), [&](int64_t panel) { functions.backward_columns(args, panel, of_b); });
    }
    for_row_blocks(0, shape.n, [&](int64_t begin, int64_t end) {
      functions.unit_rows_backward(shape, a.const_data_ptr<T>(), rows.a_length.data(), inverse, begin, end, of_a);
      functions.unit_rows_backward(shape, b.const_data_ptr<T>(), rows.b_length.data(), T{1}, begin, end, of_b);
    });
  });
  return {grad_a, grad_b};
}

}  // namespace crane
