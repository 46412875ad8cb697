// Every pass goes through its rows a block at a time: all that is computed of a block is computed while it is in the
// processor's cache, so that a recursion reads the features once and writes them once.
// Compiled once for each instruction set.
#include "recursive_cross_modal_attention/kernel.h"

#include "common/gemm.h"

namespace crane {
namespace CRANE_ISA {
namespace {

constexpr int64_t kBlockRows = 16 * kTileRows;
constexpr int64_t kGramRows = 64;  // of the Gram matrix, that begin at the same column: a multiple of a vector

// c = relu(A B), NaN stays NaN
template <typename T>
struct AssignRelu {
  T* c;
  int64_t stride;
  template <typename V>
  void put(int64_t row, int64_t column, typename V::type sum) const {
    const typename V::type zero{};
    V::store(c + row * stride + column, sum < zero ? zero : sum);
  }
};

// c = A B where the result of relu was not zero
template <typename T>
struct AssignReluGradient {
  T* c;
  int64_t stride;
  const T* relu;
  int64_t relu_stride;
  template <typename V>
  void put(int64_t row, int64_t column, typename V::type sum) const {
    const typename V::type zero{};
    const typename V::type gate = V::load(relu + row * relu_stride + column);
    V::store(c + row * stride + column, gate <= zero ? zero : sum);
  }
};

// Calls f(first row, rows) for each block.
template <typename F>
void for_blocks(int64_t begin, int64_t end, const F& f) {
  for (; begin < end; begin += kBlockRows) f(begin, end - begin < kBlockRows ? end - begin : kBlockRows);
}

template <typename T>
void transpose(const T* a, int64_t m, int64_t n, T* out) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) out[j * m + i] = a[i * n + j];
  }
}

float hyperbolic_tangent(float x) { return __builtin_tanhf(x); }
double hyperbolic_tangent(double x) { return __builtin_tanh(x); }

template <typename T>
void mix(const MixArgs<T>& args, int64_t modality) {
  const int64_t d = args.shape.width, columns = args.shape.columns(), offset = modality * d * d;
  T* correlation = args.correlation + offset;
  gemm(d, d, columns + 1, transposed(args.moments + modality * d, columns), args.joint, d, Assign<T>{correlation, d});
  for (int64_t i = 0; i < d * d; ++i) correlation[i] = hyperbolic_tangent(correlation[i] * args.scale);
  gemm(d, d, d, plain(args.w_attend + offset, d), correlation, d, Assign<T>{args.mixed + offset, d});
}

template <typename T>
void mix_backward(const MixArgs<T>& args, T* scratch) {
  const int64_t d = args.shape.width, columns = args.shape.columns();
  T *grad = scratch, *flipped = scratch + args.shape.weights();  // grad: of (X_m^T [X | 1]) J
  for (int64_t offset = 0; offset < columns * d; offset += d * d) {
    const T *correlation = args.correlation + offset, *grad_mixed = args.grad_mixed + offset;
    transpose(correlation, d, d, flipped);
    gemm(d, d, d, plain(grad_mixed, d), flipped, d, AddTo<T>{args.grad_w_attend + offset, d});
    gemm(d, d, d, transposed(args.w_attend + offset, d), grad_mixed, d, Assign<T>{grad + offset, d});
    for (int64_t i = 0; i < d * d; ++i) grad[offset + i] *= (1 - correlation[i]) * (1 + correlation[i]) * args.scale;
  }
  gemm(columns + 1, d, columns, plain(args.moments, columns), grad, d, AddTo<T>{args.grad_joint, d});
  transpose(grad, columns, d, flipped);
  gemm(columns + 1, columns, d, plain(args.joint, d), flipped, columns, Assign<T>{args.grad_moments, columns});
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const T both = args.grad_moments[i * columns + j] + args.grad_moments[j * columns + i];
      args.grad_moments[i * columns + j] = args.grad_moments[j * columns + i] = both;
    }
  }
}

template <typename T>
void add_block_moments(int64_t columns, const T* x, int64_t n, T* moments) {
  for (int64_t i = 0; i < columns; i += kGramRows) {
    const int64_t m = columns - i < kGramRows ? columns - i : kGramRows;
    gemm(m, columns - i, n, transposed(x + i, columns), x + i, columns, AddTo<T>{moments + i * columns + i, columns});
  }
  T* sums = moments + columns * columns;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t c = 0; c < columns; ++c) sums[c] += x[row * columns + c];
  }
}

template <typename T>
void add_moments(const AttentionShape& shape, const T* x, int64_t begin, int64_t end, T* moments) {
  const int64_t columns = shape.columns();
  for_blocks(begin, end, [&](int64_t row, int64_t n) { add_block_moments(columns, x + row * columns, n, moments); });
}

// h = relu(x B) and, if wanted, refined = x + h V, of the n rows of a block.
template <typename T>
void refine_block(const AttentionShape& shape, const T* x, int64_t n, const T* mixed, const T* w_out, T* h,
                  T* refined) {
  const int64_t d = shape.width, columns = shape.columns();
  for (int64_t c = 0; c < columns; c += d) {
    gemm(n, d, d, plain(x + c, columns), mixed + c * d, d, AssignRelu<T>{h + c, columns});
    if (refined == nullptr) continue;
    gemm(n, d, d, plain(h + c, columns), w_out + c * d, d, AssignSum<T>{refined + c, columns, x + c, columns});
  }
}

// The rows of a block where they are, or gathered.
template <typename T>
const T* block_rows(int64_t columns, const T* x, const int64_t* rows, int64_t begin, int64_t n, T* gathered) {
  if (rows == nullptr) return x + begin * columns;
  for (int64_t i = 0; i < n; ++i) {
    __builtin_memcpy(gathered + i * columns, x + rows[begin + i] * columns, sizeof(T) * columns);
  }
  return gathered;
}

template <typename T>
void refine(const RefineArgs<T>& args, int64_t begin, int64_t end, T* moments, T* scratch) {
  const int64_t columns = args.shape.columns();
  T *h = scratch, *gathered = scratch + kBlockRows * columns;
  for_blocks(begin, end, [&](int64_t row, int64_t n) {
    const T* x = block_rows(columns, args.x, args.rows, row, n, gathered);
    T* refined = args.refined + row * columns;
    refine_block(args.shape, x, n, args.mixed, args.w_out, h, refined);
    if (moments != nullptr) add_block_moments(columns, refined, n, moments);
  });
}

// The gradient of the n rows from `row` on, of which x are the features, in `grad`.
template <typename T>
void block_gradient(const RefineBackwardArgs<T>& args, const T* x, int64_t row, int64_t n, T* grad) {
  const int64_t columns = args.shape.columns();
  const T* sums = args.grad_moments == nullptr ? nullptr : args.grad_moments + columns * columns;
  for (int64_t i = 0; i < n; ++i) {
    T* out = grad + i * columns;
    if (args.first == nullptr) {
      const T* arriving = args.arriving + (row + i) * columns;
      for (int64_t c = 0; c < columns; ++c) out[c] = arriving[c];
    } else {
      for (int64_t c = 0; c < columns; ++c) out[c] = 0;
      for (int64_t p = args.first[row + i]; p < args.first[row + i + 1]; ++p) {
        const T* arriving = args.arriving + args.places[p] * columns;
        for (int64_t c = 0; c < columns; ++c) out[c] += arriving[c];
      }
    }
    for (int64_t c = 0; sums != nullptr && c < columns; ++c) out[c] += sums[c];
  }
  if (args.grad_moments == nullptr) return;
  gemm(n, columns, columns, plain(x, columns), args.grad_moments, columns, AddTo<T>{grad, columns});
}

template <typename T>
void refine_backward(const RefineBackwardArgs<T>& args, int64_t begin, int64_t end, T* grad_weights, T* scratch) {
  const AttentionShape& shape = args.shape;
  const int64_t d = shape.width, columns = shape.columns(), block = kBlockRows * columns;
  T *h = scratch, *start = h + block, *refined = start + block, *grad = refined + block, *grad_h = grad + block;
  T *grad_mixed = grad_weights, *grad_w_out = grad_weights + shape.weights();
  for_blocks(begin, end, [&](int64_t row, int64_t n) {
    const T* x = block_rows(columns, args.x, args.rows, row, n, start);
    const T* mixed = args.mixed;
    for (int64_t step = 0; step < args.steps; ++step, mixed += shape.weights()) {
      refine_block(shape, x, n, mixed, args.w_out, h, start);
      x = start;
    }
    refine_block(shape, x, n, mixed, args.w_out, h, args.grad_moments == nullptr ? nullptr : refined);
    block_gradient(args, refined, row, n, grad);
    for (int64_t c = 0; c < columns; c += d) {
      gemm(d, d, n, transposed(h + c, columns), grad + c, columns, AddTo<T>{grad_w_out + c * d, d});
      gemm(n, d, d, plain(grad + c, columns), args.w_out_t + c * d, d,
           AssignReluGradient<T>{grad_h, d, h + c, columns});
      gemm(d, d, n, transposed(x + c, columns), grad_h, d, AddTo<T>{grad_mixed + c * d, d});
      if (args.grad_x == nullptr) continue;
      gemm(n, d, d, plain(grad_h, d), args.mixed_t + c * d, d,
           AssignSum<T>{args.grad_x + row * columns + c, columns, grad + c, columns});
    }
  });
}

template <typename T>
void moments_backward(const RefineBackwardArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t columns = args.shape.columns();
  for_blocks(begin, end, [&](int64_t row, int64_t n) {
    block_gradient(args, args.x + row * columns, row, n, args.grad_x + row * columns);
  });
}

template <typename T>
int64_t scratch(const AttentionShape& shape) {
  return 5 * kBlockRows * shape.columns();
}

template <typename T>
constexpr AttentionFunctions<T> functions() {
  return {scratch<T>, mix<T>, mix_backward<T>, add_moments<T>, refine<T>, refine_backward<T>, moments_backward<T>};
}

}  // namespace

const AttentionTable& attention_table() {
  static constexpr AttentionTable kTable = {functions<float>(), functions<double>()};
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
