#include "recursive_cross_modal_attention/recursive_cross_modal_attention.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "recursive_cross_modal_attention/kernel.h"

namespace crane {

namespace {

constexpr int64_t kTasks = 64;  // at most, so that their sums take little memory

// Rows of a task; by the shapes alone, so that sums over rows have the same bits for every number of threads. Its sums
// take at most half the memory of its rows' features.
int64_t task_rows(int64_t n, int64_t columns) { return std::max((n + kTasks - 1) / kTasks, 2 * columns); }

// out = the sum of the tasks' `size` elements each, in the order of the tasks.
template <typename T>
void add_up(const std::vector<T>& sums, int64_t size, T* out) {
  constexpr int64_t kSlice = 4096;
  const int64_t n_tasks = static_cast<int64_t>(sums.size()) / size;
  parallel_tasks((size + kSlice - 1) / kSlice, [&](int64_t slice) {
    const int64_t begin = slice * kSlice, n = std::min(kSlice, size - begin);
    double total[kSlice] = {};
    for (int64_t task = 0; task < n_tasks; ++task) {
      const T* values = sums.data() + task * size + begin;
      for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(values[i]);
    }
    for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<T>(total[i]);
  });
}

// Calls f(begin, end, sums, scratch) for ranges of the n rows, and adds up their sums of `size` elements in `out`.
template <typename T, typename F>
void sum_over_rows(int64_t n, const AttentionShape& shape, int64_t scratch_size, int64_t size, T* out, const F& f) {
  const int64_t rows = task_rows(n, shape.columns()), n_tasks = (n + rows - 1) / rows;
  std::vector<T> sums(n_tasks * size);
  parallel_tasks(n_tasks, [&](int64_t task) {
    const auto scratch = std::make_unique_for_overwrite<T[]>(scratch_size);
    f(task * rows, std::min(n, (task + 1) * rows), sums.data() + task * size, scratch.get());
  });
  if (size > 0) add_up(sums, size, out);
}

template <typename T>
void mirror(int64_t columns, T* gram) {
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j < i; ++j) gram[i * columns + j] = gram[j * columns + i];
  }
}

template <typename T>
std::vector<T> transposed(const T* matrices, const AttentionShape& shape) {
  const int64_t d = shape.width;
  std::vector<T> result(shape.weights());
  for (int64_t m = 0; m < shape.modalities; ++m) {
    for (int64_t i = 0; i < d * d; ++i) result[m * d * d + i % d * d + i / d] = matrices[m * d * d + i];
  }
  return result;
}

// The arguments, checked and contiguous.
struct Inputs {
  Tensor x, w_attend, w_out;
  std::optional<Tensor> rows;
  AttentionShape shape;
  int64_t n;
  int64_t n_refined;  // rows of the result

  Inputs(const Tensor& x_in, const Tensor& w_joint, const Tensor& b_joint, const Tensor& w_attend_in,
         const Tensor& w_out_in, const std::optional<Tensor>& rows_in)
      : x(torch::stable::contiguous(x_in)),
        w_attend(torch::stable::contiguous(w_attend_in)),
        w_out(torch::stable::contiguous(w_out_in)),
        rows(rows_in) {
    STD_TORCH_CHECK(
        x.is_cpu() && x.dim() == 3 && (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double),
        "x: expected a float32 or float64 CPU tensor of three dimensions");
    n = n_refined = x.size(0);
    shape = {x.size(1), x.size(2)};
    const int64_t d = shape.width;
    check(w_joint, shape.columns() * d, "w_joint");
    check(b_joint, d, "b_joint");
    check(w_attend, shape.weights(), "w_attend");
    check(w_out, shape.weights(), "w_out");
    if (rows.has_value()) {
      check_vector(*rows, ScalarType::Long, "rows");
      n_refined = rows->size(0);
      const int64_t* row = row_data();
      STD_TORCH_CHECK(std::all_of(row, row + n_refined, [&](int64_t r) { return 0 <= r && r < n; }),
                      "rows: expected rows of x");
    }
  }

  void check(const Tensor& t, int64_t numel, const char* name) const {
    STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == x.scalar_type() && t.numel() == numel, name,
                    ": expected a CPU tensor of the dtype and width of x");
  }

  const int64_t* row_data() const { return rows.has_value() ? rows->const_data_ptr<int64_t>() : nullptr; }

  // Calls f with the functions of the dtype, and a zero of it.
  template <typename F>
  void visit(const F& f) const {
    if (x.scalar_type() == ScalarType::Float) {
      f(attention_table().of_float, float{});
    } else {
      f(attention_table().of_double, double{});
    }
  }
};

// Where `rows` has each of the n rows of x: row i is rows[p] for the p of places[first[i] .. first[i + 1]), ascending.
struct Places {
  std::vector<int64_t> first, places;
  explicit Places(const Inputs& in) {
    if (!in.rows.has_value()) return;
    const int64_t* rows = in.row_data();
    first.resize(in.n + 1);
    places.resize(in.n_refined);
    for (int64_t p = 0; p < in.n_refined; ++p) ++first[rows[p]];
    for (int64_t i = 0, end = 0; i <= in.n; ++i) first[i] = end += first[i];
    for (int64_t p = in.n_refined - 1; p >= 0; --p) places[--first[rows[p]]] = p;
  }
};

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// W_E, and under it b_E.
template <typename T>
std::vector<T> joint_weights(const Tensor& w_joint_in, const Tensor& b_joint_in) {
  const Tensor w_joint = torch::stable::contiguous(w_joint_in), b_joint = torch::stable::contiguous(b_joint_in);
  std::vector<T> joint(w_joint.const_data_ptr<T>(), w_joint.const_data_ptr<T>() + w_joint.numel());
  joint.insert(joint.end(), b_joint.const_data_ptr<T>(), b_joint.const_data_ptr<T>() + b_joint.numel());
  return joint;
}

// B and C of the recursions from their moments.
template <typename T>
class Mixer {
 public:
  Mixer(const AttentionFunctions<T>& functions, const Inputs& in, const Tensor& w_joint, const Tensor& b_joint,
        double scale, int64_t recursions)
      : functions_(functions),
        shape_(in.shape),
        joint_(joint_weights<T>(w_joint, b_joint)),
        correlation_(recursions * in.shape.weights()),
        mixed_(recursions * in.shape.weights()) {
    args_.shape = shape_;
    args_.scale = static_cast<T>(scale);
    args_.joint = joint_.data();
    args_.w_attend = in.w_attend.template const_data_ptr<T>();
  }

  // B of recursion r.
  const T* mixed(int64_t r) const { return mixed_.data() + r * shape_.weights(); }

  void mix(int64_t r, const T* moments) {
    const MixArgs<T> args = of_recursion(r, moments);
    parallel_tasks(shape_.modalities, [&](int64_t m) { functions_.mix(args, m); });
  }

  // From the gradient of B of recursion r those of the moments; those of J and W are added to.
  void mix_backward(int64_t r, const T* moments, const T* grad_mixed, T* grad_joint, T* grad_w_attend,
                    T* grad_moments) {
    MixArgs<T> args = of_recursion(r, moments);
    args.grad_mixed = grad_mixed;
    args.grad_joint = grad_joint;
    args.grad_w_attend = grad_w_attend;
    args.grad_moments = grad_moments;
    std::vector<T> scratch(2 * shape_.weights());
    functions_.mix_backward(args, scratch.data());
  }

 private:
  MixArgs<T> of_recursion(int64_t r, const T* moments) {
    MixArgs<T> args = args_;
    args.moments = moments;
    args.correlation = correlation_.data() + r * shape_.weights();
    args.mixed = mixed_.data() + r * shape_.weights();
    return args;
  }

  const AttentionFunctions<T>& functions_;
  const AttentionShape shape_;
  const std::vector<T> joint_;
  std::vector<T> correlation_, mixed_;
  MixArgs<T> args_{};
};

// Writes moments, and the refined features of each recursion where `refined` says.
template <typename T, typename F>
void forward(const AttentionFunctions<T>& functions, const Inputs& in, Mixer<T> mixer, int64_t recursions, T* moments,
             const F& refined) {
  const int64_t size = in.shape.moments(), scratch = functions.scratch(in.shape);
  RefineArgs<T> args{};
  args.shape = in.shape;
  args.x = in.x.template const_data_ptr<T>();
  args.w_out = in.w_out.template const_data_ptr<T>();
  sum_over_rows(in.n, in.shape, 0, size, moments, [&](int64_t begin, int64_t end, T* sums, T*) {
    functions.add_moments(in.shape, args.x, begin, end, sums);
  });
  for (int64_t r = 0; r < recursions; ++r, moments += size) {
    const bool last = r == recursions - 1;
    mirror(in.shape.columns(), moments);
    mixer.mix(r, moments);
    args.mixed = mixer.mixed(r);
    args.rows = last ? in.row_data() : nullptr;
    args.refined = refined(r);
    sum_over_rows(last ? in.n_refined : in.n, in.shape, scratch, last ? 0 : size, moments + size,
                  [&](int64_t begin, int64_t end, T* sums, T* own) {
                    functions.refine(args, begin, end, last ? nullptr : sums, own);
                  });
    args.x = args.refined;
  }
}

template <typename T>
struct Gradients {
  T* x;     // null: not wanted
  T* work;  // of all features, while it is on its way to x; may be x
  T* some;  // of the features that the last recursion started from, at `rows`
  T* joint;
  T* w_attend;
  T* w_out;
};

// Writes the gradients; those of joint, w_attend and w_out are added to.
template <typename T>
void backward(const AttentionFunctions<T>& functions, const Inputs& in, Mixer<T> mixer, const Tensor& arriving,
              const Tensor& between, const Tensor& moments, const Gradients<T>& grad) {
  const int64_t recursions = moments.size(0), weights = in.shape.weights();
  const T *x = in.x.template const_data_ptr<T>(), *w_out = in.w_out.template const_data_ptr<T>();
  const auto moments_of = [&](int64_t r) { return moments.const_data_ptr<T>() + r * in.shape.moments(); };
  for (int64_t r = 0; r < recursions; ++r) mixer.mix(r, moments_of(r));
  const std::vector<T> w_out_t = transposed(w_out, in.shape);
  const Places places(in);
  std::vector<T> grad_weights(2 * weights), grad_moments(in.shape.moments());
  RefineBackwardArgs<T> args{};
  args.shape = in.shape;
  args.w_out = w_out;
  args.w_out_t = w_out_t.data();
  args.arriving = arriving.const_data_ptr<T>();
  for (int64_t r = recursions - 1; r >= 0; --r) {
    const bool some = r == recursions - 1 && in.rows.has_value();
    const int64_t start = between.size(0) > 0 ? r : 0;
    const std::vector<T> mixed_t = transposed(mixer.mixed(r), in.shape);
    args.x = start == 0 ? x : between.const_data_ptr<T>() + (start - 1) * in.x.numel();
    args.rows = some ? in.row_data() : nullptr;
    args.steps = r - start;
    args.mixed = mixer.mixed(start);
    args.mixed_t = mixed_t.data();
    args.grad_x = r == 0 && grad.x == nullptr ? nullptr : some ? grad.some : grad.work;
    sum_over_rows(some ? in.n_refined : in.n, in.shape, functions.scratch(in.shape), 2 * weights, grad_weights.data(),
                  [&](int64_t begin, int64_t end, T* sums, T* scratch) {
                    functions.refine_backward(args, begin, end, sums, scratch);
                  });
    for (int64_t i = 0; i < weights; ++i) grad.w_out[i] += grad_weights[weights + i];
    mixer.mix_backward(r, moments_of(r), grad_weights.data(), grad.joint, grad.w_attend, grad_moments.data());
    // What this pass wrote is what arrives at the next.
    args.arriving = args.grad_x;
    args.first = some ? places.first.data() : nullptr;
    args.places = places.places.data();
    args.grad_moments = grad_moments.data();
  }
  if (grad.x == nullptr) return;
  args.x = x;
  args.grad_x = grad.x;
  sum_over_rows<T>(in.n, in.shape, 0, 0, nullptr,
                   [&](int64_t begin, int64_t end, T*, T*) { functions.moments_backward(args, begin, end); });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> recursive_cross_modal_attention(const Tensor& x, const Tensor& w_joint,
                                                                   const Tensor& b_joint, const Tensor& w_attend,
                                                                   const Tensor& w_out,
                                                                   const std::optional<Tensor>& rows,
                                                                   int64_t recursions, double scale, int64_t kept) {
  const Inputs in(x, w_joint, b_joint, w_attend, w_out, rows);
  STD_TORCH_CHECK(recursions >= 1 && (kept == 0 || kept == recursions - 1),
                  "recursions, kept: expected at least 1, and none or all of those between");
  const int64_t modalities = in.shape.modalities, d = in.shape.width, columns = in.shape.columns();
  const Tensor result = torch::stable::new_empty(in.x, {in.n_refined, modalities, d});
  const Tensor between = torch::stable::new_empty(in.x, {kept, in.n, modalities, d});
  const Tensor moments = torch::stable::new_empty(in.x, {recursions, columns + 1, columns});
  // Where nothing is kept, all recursions after the first refine in place: in the result, if that has all rows.
  const bool in_result = kept > 0 || recursions == 1 || !rows.has_value();
  const Tensor buffer = in_result ? result : torch::stable::new_empty(in.x, {in.n, modalities, d});
  in.visit([&](const auto& functions, auto zero) {
    using T = decltype(zero);
    forward(functions, in, Mixer<T>(functions, in, w_joint, b_joint, scale, recursions), recursions, data<T>(moments),
            [&](int64_t r) {
              if (r == recursions - 1) return data<T>(result);
              return kept == 0 ? data<T>(buffer) : data<T>(between) + r * in.x.numel();
            });
  });
  return {result, between, moments};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recursive_cross_modal_attention_backward(
    const Tensor& grad_in, const Tensor& x, const Tensor& w_joint, const Tensor& b_joint, const Tensor& w_attend,
    const Tensor& w_out, const std::optional<Tensor>& rows, const Tensor& between, const Tensor& moments, double scale,
    bool wants_x) {
  const Inputs in(x, w_joint, b_joint, w_attend, w_out, rows);
  const Tensor grad = torch::stable::contiguous(grad_in);
  const int64_t modalities = in.shape.modalities, d = in.shape.width, columns = in.shape.columns();
  const int64_t recursions = moments.size(0), kept = between.size(0);
  STD_TORCH_CHECK(
      recursions >= 1 && (kept == 0 || kept == recursions - 1) && moments.is_contiguous() && between.is_contiguous(),
      "moments, between: expected what the forward operator returned");
  in.check(grad, in.n_refined * columns, "grad");
  in.check(moments, recursions * in.shape.moments(), "moments");
  in.check(between, kept * in.x.numel(), "between");
  const Tensor grad_x = torch::stable::new_empty(in.x, {wants_x ? in.n : 0, modalities, d});
  const Tensor work = wants_x ? grad_x : torch::stable::new_empty(in.x, {recursions > 1 ? in.n : 0, modalities, d});
  const Tensor some = torch::stable::new_empty(in.x, {rows.has_value() ? in.n_refined : 0, modalities, d});
  const Tensor grad_joint = torch::stable::new_zeros(in.x, {columns + 1, d});
  const Tensor grad_w_attend = torch::stable::new_zeros(in.x, {modalities, d, d});
  const Tensor grad_w_out = torch::stable::new_zeros(in.x, {modalities, d, d});
  in.visit([&](const auto& functions, auto zero) {
    using T = decltype(zero);
    const Gradients<T> out{wants_x ? data<T>(grad_x) : nullptr,
                           data<T>(work),
                           data<T>(some),
                           data<T>(grad_joint),
                           data<T>(grad_w_attend),
                           data<T>(grad_w_out)};
    backward(functions, in, Mixer<T>(functions, in, w_joint, b_joint, scale, recursions), grad, between, moments, out);
  });
  return {grad_x, grad_joint, grad_w_attend, grad_w_out};
}

}  // namespace crane
