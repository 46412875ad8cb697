#include "modality_attention/modality_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "modality_attention/kernel.h"

namespace crane {

namespace {

constexpr int64_t kMaxChunks = 64;  // of rows: each sums the weights' gradients by itself
constexpr int64_t kMinChunkRows = 1024;

struct Weights {
  const Tensor& in_proj_weight;
  const std::optional<Tensor>& in_proj_bias;
  const Tensor& out_proj_weight;
  const std::optional<Tensor>& out_proj_bias;
};

void check(const Tensor& tokens, const Weights& weights, int64_t num_heads) {
  STD_TORCH_CHECK(tokens.is_cpu() && tokens.dim() == 3 && tokens.size(1) >= 1 && tokens.size(1) <= kMaxTokens &&
                      tokens.size(2) >= 1,
                  "tokens: expected a CPU tensor of rows, 1 to ", kMaxTokens, " tokens, width");
  const ScalarType dtype = tokens.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "tokens: expected float32 or float64");
  const int64_t width = tokens.size(2);
  const auto matrix = [&](const Tensor& t, int64_t rows) {
    return t.is_cpu() && t.scalar_type() == dtype && t.dim() == 2 && t.size(0) == rows && t.size(1) == width;
  };
  STD_TORCH_CHECK(matrix(weights.in_proj_weight, 3 * width) && matrix(weights.out_proj_weight, width),
                  "projection weights: expected CPU matrices of the dtype and width of tokens");
  const auto vector = [&](const std::optional<Tensor>& t, int64_t n) {
    return !t.has_value() || (t->is_cpu() && t->scalar_type() == dtype && t->dim() == 1 && t->size(0) == n);
  };
  STD_TORCH_CHECK(vector(weights.in_proj_bias, 3 * width) && vector(weights.out_proj_bias, width),
                  "projection biases: expected CPU vectors of the dtype and width of tokens");
  STD_TORCH_CHECK(num_heads >= 1 && width % num_heads == 0, "num_heads: expected a divisor of the width");
}

// The weights in the forms the kernel wants.
template <typename T>
class PackedWeights {
 public:
  PackedWeights(const Weights& weights, int64_t width, int64_t num_heads)
      : width_(width), memory_(8 * width * width + 4 * width) {
    const Tensor in = torch::stable::contiguous(weights.in_proj_weight);
    const Tensor out = torch::stable::contiguous(weights.out_proj_weight);
    const T* in_rows = in.const_data_ptr<T>();
    for (int64_t p = 0; p < 3; ++p) {
      pack(p, in_rows + p * width * width, p == 1 ? scale(num_heads) : T(1));
    }
    pack(3, out.const_data_ptr<T>(), T(1));
    copy(weights.in_proj_bias, memory_.data() + 8 * width * width);
    copy(weights.out_proj_bias, memory_.data() + 8 * width * width + 3 * width);
  }

  T scale(int64_t num_heads) const { return 1 / std::sqrt(static_cast<T>(width_ / num_heads)); }

  void give(ModalityAttentionArgs<T>& args) const {
    args.query = projection(0);
    args.key = projection(1);
    args.value = projection(2);
    args.out = projection(3);
    args.query_bias = memory_.data() + 8 * width_ * width_;
    args.value_bias = args.query_bias + 2 * width_;
    args.out_bias = args.query_bias + 3 * width_;
  }

 private:
  PackedProjection<T> projection(int64_t p) const {
    const T* weight = memory_.data() + 2 * p * width_ * width_;
    return {weight, weight + width_ * width_};
  }

  void pack(int64_t p, const T* weight, T factor) {
    T* out = memory_.data() + 2 * p * width_ * width_;
    T* transpose = out + width_ * width_;
    for (int64_t i = 0; i < width_; ++i) {
      for (int64_t j = 0; j < width_; ++j) {
        out[i * width_ + j] = transpose[j * width_ + i] = factor * weight[i * width_ + j];
      }
    }
  }

  static void copy(const std::optional<Tensor>& bias, T* out) {
    if (!bias.has_value()) return;
    const Tensor dense = torch::stable::contiguous(*bias);
    std::copy_n(dense.const_data_ptr<T>(), dense.size(0), out);
  }

  int64_t width_;
  std::vector<T> memory_;  // zero where there is no bias
};

template <typename T>
const ModalityAttentionFunctions<T>& functions(int64_t tokens);
template <>
const ModalityAttentionFunctions<float>& functions<float>(int64_t tokens) {
  return modality_attention_table().of_float[tokens - 1];
}
template <>
const ModalityAttentionFunctions<double>& functions<double>(int64_t tokens) {
  return modality_attention_table().of_double[tokens - 1];
}

// Tokens whose elements follow each other.
Tensor dense_tokens(const Tensor& tokens) {
  return tokens.stride(2) == 1 || tokens.size(2) == 1 ? tokens : torch::stable::contiguous(tokens);
}

template <typename T>
ModalityAttentionArgs<T> arguments(const Tensor& tokens, const PackedWeights<T>& weights, int64_t num_heads) {
  ModalityAttentionArgs<T> args{};
  args.tokens = tokens.const_data_ptr<T>();
  args.row_stride = tokens.stride(0);
  args.token_stride = tokens.stride(1);
  args.width = tokens.size(2);
  args.heads = num_heads;
  weights.give(args);
  return args;
}

// Calls f(chunk, begin, end, scratch) for chunks of the rows, which do not depend on the number of threads.
template <typename T, typename F>
void for_chunks(const ModalityAttentionFunctions<T>& functions, int64_t n, int64_t chunk_rows, int64_t width,
                const F& f) {
  const int64_t block = functions.block(width);
  const int64_t rows = (chunk_rows + block - 1) / block * block;
  parallel_tasks((n + rows - 1) / rows, [&](int64_t chunk) {
    std::vector<T> scratch(functions.scratch(width));
    f(chunk, chunk * rows, std::min(n, (chunk + 1) * rows), scratch.data());
  });
}

template <typename T>
void forward(const Tensor& tokens, const Weights& weights, int64_t num_heads, Tensor& output) {
  const PackedWeights<T> packed(weights, tokens.size(2), num_heads);
  ModalityAttentionArgs<T> args = arguments<T>(tokens, packed, num_heads);
  args.output = output.mutable_data_ptr<T>();
  const auto& kernel = functions<T>(tokens.size(1));
  for_chunks(kernel, tokens.size(0), kMinChunkRows, args.width,
             [&](int64_t, int64_t begin, int64_t end, T* scratch) { kernel.forward(args, begin, end, scratch); });
}

struct Gradients {
  Tensor tokens, in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias;
};

// Adds up the chunks' sums in their order and puts each part where it belongs.
template <typename T>
void reduce(const std::vector<T>& sums, int64_t width, T scale, Gradients& gradients) {
  const ModalityWeightGradients at(width);
  const int64_t chunks = static_cast<int64_t>(sums.size()) / at.size;
  const auto put = [&](int64_t first, int64_t n, T factor, T* out) {
    constexpr int64_t kPiece = 1024;
    parallel_tasks((n + kPiece - 1) / kPiece, [&](int64_t piece) {
      for (int64_t i = piece * kPiece; i < std::min(n, (piece + 1) * kPiece); ++i) {
        T sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * at.size + first + i];
        out[i] = factor * sum;
      }
    });
  };
  const int64_t square = width * width;
  T* in_weight = gradients.in_proj_weight.mutable_data_ptr<T>();
  put(at.query, square, 1, in_weight);
  put(at.key, square, scale, in_weight + square);
  put(at.value, square, 1, in_weight + 2 * square);
  put(at.out, square, 1, gradients.out_proj_weight.mutable_data_ptr<T>());
  T* in_bias = gradients.in_proj_bias.mutable_data_ptr<T>();
  put(at.query_bias, width, 1, in_bias);
  std::fill_n(in_bias + width, width, T(0));
  put(at.value_bias, width, 1, in_bias + 2 * width);
  put(at.out_bias, width, 1, gradients.out_proj_bias.mutable_data_ptr<T>());
}

template <typename T>
void backward(const Tensor& grad, const Tensor& tokens, const Weights& weights, int64_t num_heads,
              Gradients& gradients) {
  const int64_t n = tokens.size(0), width = tokens.size(2);
  const PackedWeights<T> packed(weights, width, num_heads);
  ModalityAttentionArgs<T> args = arguments<T>(tokens, packed, num_heads);
  args.grad = grad.const_data_ptr<T>();
  args.grad_tokens = gradients.tokens.mutable_data_ptr<T>();
  const auto& kernel = functions<T>(tokens.size(1));
  const int64_t chunk_rows = std::max(kMinChunkRows, (n + kMaxChunks - 1) / kMaxChunks);
  const int64_t size = ModalityWeightGradients(width).size;
  std::vector<T> sums(std::min(kMaxChunks, (n + kMinChunkRows - 1) / kMinChunkRows) * size);
  for_chunks(kernel, n, chunk_rows, width, [&](int64_t chunk, int64_t begin, int64_t end, T* scratch) {
    kernel.backward(args, begin, end, scratch, sums.data() + chunk * size);
  });
  reduce(sums, width, packed.scale(num_heads), gradients);
}

}  // namespace

Tensor modality_attention(const Tensor& tokens_in, const Tensor& in_proj_weight,
                          const std::optional<Tensor>& in_proj_bias, const Tensor& out_proj_weight,
                          const std::optional<Tensor>& out_proj_bias, int64_t num_heads) {
  const Weights weights{in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias};
  check(tokens_in, weights, num_heads);
  const Tensor tokens = dense_tokens(tokens_in);
  Tensor output = torch::stable::new_empty(tokens, {tokens.size(0), tokens.size(2)});
  if (tokens.scalar_type() == ScalarType::Float) {
    forward<float>(tokens, weights, num_heads, output);
  } else {
    forward<double>(tokens, weights, num_heads, output);
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> modality_attention_backward(
    const Tensor& grad_in, const Tensor& tokens_in, const Tensor& in_proj_weight,
    const std::optional<Tensor>& in_proj_bias, const Tensor& out_proj_weight,
    const std::optional<Tensor>& out_proj_bias, int64_t num_heads) {
  const Weights weights{in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias};
  check(tokens_in, weights, num_heads);
  STD_TORCH_CHECK(grad_in.is_cpu() && grad_in.scalar_type() == tokens_in.scalar_type() && grad_in.dim() == 2 &&
                      grad_in.size(0) == tokens_in.size(0) && grad_in.size(1) == tokens_in.size(2),
                  "grad: expected a CPU matrix of the dtype, rows and width of tokens");
  const Tensor tokens = dense_tokens(tokens_in), grad = torch::stable::contiguous(grad_in);
  const int64_t width = tokens.size(2);
  Gradients gradients{torch::stable::new_empty(tokens, {tokens.size(0), tokens.size(1), width}),
                      torch::stable::new_empty(tokens, {3 * width, width}),
                      torch::stable::new_empty(tokens, {3 * width}), torch::stable::new_empty(tokens, {width, width}),
                      torch::stable::new_empty(tokens, {width})};
  if (tokens.scalar_type() == ScalarType::Float) {
    backward<float>(grad, tokens, weights, num_heads, gradients);
  } else {
    backward<double>(grad, tokens, weights, num_heads, gradients);
  }
  return {gradients.tokens, gradients.in_proj_weight, gradients.in_proj_bias, gradients.out_proj_weight,
          gradients.out_proj_bias};
}

}  // namespace crane
