// The n x n logits exist only a panel of a few rows at a time in forward, and some hundreds of rows in backward.
// Compiled once for each instruction set.
#include "info_nce/kernel.h"

#include <limits>

#include "common/exponential.h"
#include "common/gemm.h"

namespace crane {
namespace CRANE_ISA {
namespace {

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

int64_t panel_columns(const NceShape& shape, int64_t panel) {
  const int64_t rest = shape.n - panel * kPanelColumns;
  return rest < kPanelColumns ? rest : kPanelColumns;
}

template <typename T>
double dot(int64_t d, const T* x, const T* y) {
  double sum = 0;
  for (int64_t c = 0; c < d; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(y[c]);
  return sum;
}

template <typename T>
void unit_rows(const NceShape& shape, const T* x, T factor, int64_t begin, int64_t end, T* unit, T* length) {
  const int64_t d = shape.width;
  for (int64_t i = begin; i < end; ++i) {
    const double squares = __builtin_sqrt(dot(d, x + i * d, x + i * d));
    const double scale = squares == 0 ? 0 : static_cast<double>(factor) / squares;
    length[i] = static_cast<T>(squares);
    for (int64_t c = 0; c < d; ++c) unit[i * d + c] = static_cast<T>(static_cast<double>(x[i * d + c]) * scale);
  }
}

template <typename T>
void unit_rows_backward(const NceShape& shape, const T* x, const T* length, T factor, int64_t begin, int64_t end,
                        T* grad) {
  const int64_t d = shape.width;
  for (int64_t i = begin; i < end; ++i) {
    const T *row = x + i * d, inverse = length[i] == 0 ? 0 : 1 / length[i];
    T* g = grad + i * d;
    const T along = static_cast<T>(dot(d, row, g)) * inverse * inverse;
    for (int64_t c = 0; c < d; ++c) g[c] = (g[c] - row[c] * along) * inverse * factor;
  }
}

template <typename T>
void pack(const NceShape& shape, const T* b, int64_t panel, T* b_panels) {
  const int64_t d = shape.width, w = panel_columns(shape, panel), first = panel * kPanelColumns * d;
  for (int64_t c = 0; c < d; ++c) {
    for (int64_t j = 0; j < w; ++j) b_panels[first + c * w + j] = b[first + j * d + c];
  }
}

// The logits of rows [begin, end) and one panel's columns; those that do not count are minus infinity.
template <typename T>
void logits(const NceArgs<T>& args, int64_t begin, int64_t end, int64_t panel, T* out) {
  const int64_t d = args.shape.width, w = panel_columns(args.shape, panel), first = panel * kPanelColumns;
  gemm(end - begin, w, d, plain(args.a + begin * d, d), args.b_panels + first * d, w, Assign<T>{out, kPanelStride});
  if (args.ids == nullptr) return;
  for (int64_t i = begin; i < end; ++i) {
    T* row = out + (i - begin) * kPanelStride;
    for (int64_t j = 0; j < w; ++j) {
      if (args.ids[first + j] == args.ids[i] && first + j != i) row[j] = -std::numeric_limits<T>::infinity();
    }
  }
}

// The sum of exp(x_j - shift) over the w elements of a row.
template <typename T>
double sum_of_exponentials(const T* x, int64_t w, T shift) {
  using V = VectorOf<T, kLanes<T>>;
  typename V::type sums{};
  int64_t j = 0;
  for (; j + kLanes<T> <= w; j += kLanes<T>) sums += exponential<T, kLanes<T>>(V::load(x + j) - shift);
  double sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += static_cast<double>(sums[lane]);
  if (j < w) {
    T rest[kLanes<T>];
    for (int lane = 0; lane < kLanes<T>; ++lane)
      rest[lane] = j + lane < w ? x[j + lane] - shift : 2 * ExponentialOf<T>::kLeast;
    const typename V::type last = exponential<T, kLanes<T>>(V::load(rest));
    for (int lane = 0; lane < kLanes<T>; ++lane) sum += static_cast<double>(last[lane]);
  }
  return sum;
}

template <typename T>
T largest(const T* x, int64_t w, T most) {
  using V = VectorOf<T, kLanes<T>>;
  typename V::type lanes = typename V::type{} + most;
  int64_t j = 0;
  for (; j + kLanes<T> <= w; j += kLanes<T>) {
    const typename V::type next = V::load(x + j);
    lanes = next > lanes ? next : lanes;
  }
  for (int lane = 0; lane < kLanes<T>; ++lane) most = lanes[lane] > most ? lanes[lane] : most;
  for (; j < w; ++j) most = x[j] > most ? x[j] : most;
  return most;
}

template <typename T>
void forward(const NceArgs<T>& args, int64_t begin, int64_t end, T* log_sum_exp, T* positive) {
  T block[kLogitRows * kPanelStride];
  double sums[kLogitRows] = {};
  T most[kLogitRows];
  for (T& m : most) m = -std::numeric_limits<T>::infinity();
  for (int64_t panel = 0; panel < args.shape.panels(); ++panel) {
    const int64_t w = panel_columns(args.shape, panel), first = panel * kPanelColumns;
    logits(args, begin, end, panel, block);
    for (int64_t i = begin; i < end; ++i) {
      const T* row = block + (i - begin) * kPanelStride;
      T& m = most[i - begin];
      double& sum = sums[i - begin];
      if (first <= i && i < first + w) positive[i] = row[i - first];
      const T before = m;
      m = largest(row, w, before);
      if (m > before) sum *= __builtin_exp(static_cast<double>(before) - static_cast<double>(m));
      if (m > -std::numeric_limits<T>::infinity()) sum += sum_of_exponentials(row, w, m);
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    log_sum_exp[i] = static_cast<T>(static_cast<double>(most[i - begin]) + __builtin_log(sums[i - begin]));
  }
}

// x_j = factor * exp(x_j - shift) of the w elements of a row.
template <typename T>
void scaled_exponentials(T* x, int64_t w, T shift, T factor) {
  using V = VectorOf<T, kLanes<T>>;
  int64_t j = 0;
  for (; j + kLanes<T> <= w; j += kLanes<T>) {
    V::store(x + j, factor * exponential<T, kLanes<T>>(V::load(x + j) - shift));
  }
  for (; j < w; ++j) x[j] = factor * exponential<T, kLanes<T>>(typename V::type{} + (x[j] - shift))[0];
}

template <typename T>
T* panel_rows(const NceBackwardArgs<T>& args, int64_t panel, int64_t row) {
  return args.logits + (panel * (args.end_row - args.first_row) + row - args.first_row) * kPanelStride;
}

template <typename T>
void backward_rows(const NceBackwardArgs<T>& args, int64_t begin, int64_t end, T* grad_a) {
  const NceShape& shape = args.forward.shape;
  const int64_t d = shape.width;
  for (int64_t i = begin * d; i < end * d; ++i) grad_a[i] = 0;
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    const int64_t w = panel_columns(shape, panel), first = panel * kPanelColumns;
    T* block = panel_rows(args, panel, begin);
    logits(args.forward, begin, end, panel, block);
    for (int64_t i = begin; i < end; ++i) {
      T* row = block + (i - begin) * kPanelStride;
      scaled_exponentials(row, w, args.log_sum_exp[i], args.factor);
      if (first <= i && i < first + w) row[i - first] -= args.factor;
    }
    gemm(end - begin, d, w, plain(block, kPanelStride), args.forward.b + first * d, d, AddTo<T>{grad_a + begin * d, d});
  }
}

template <typename T>
void backward_columns(const NceBackwardArgs<T>& args, int64_t panel, T* grad_b) {
  const NceArgs<T>& in = args.forward;
  const int64_t d = in.shape.width, rows = args.end_row - args.first_row;
  gemm(panel_columns(in.shape, panel), d, rows, transposed(panel_rows(args, panel, args.first_row), kPanelStride),
       in.a + args.first_row * d, d, AddTo<T>{grad_b + panel * kPanelColumns * d, d});
}

template <typename T>
constexpr NceFunctions<T> functions() {
  return {unit_rows<T>, pack<T>, forward<T>, backward_rows<T>, backward_columns<T>, unit_rows_backward<T>};
}

}  // namespace

const NceTable& nce_table() {
  static constexpr NceTable kTable = {functions<float>(), functions<double>()};
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
