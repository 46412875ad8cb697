// Attention over the few tokens of each row, then their mean, and its gradients, a block of rows at a time: see
// kernel.cpp.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace crane {

constexpr int kMaxTokens = 4;

// The weights of a projection as they are, output x input, and transposed. All are width x width and dense.
template <typename T>
struct PackedProjection {
  const T* weight;
  const T* transpose;
};

template <typename T>
struct ModalityAttentionArgs {
  const T* tokens;  // rows x tokens x width, the elements of a token next to each other
  int64_t row_stride;
  int64_t token_stride;
  int64_t width;
  int64_t heads;
  PackedProjection<T> query;
  PackedProjection<T> key;  // times 1 / sqrt(width / heads)
  PackedProjection<T> value;
  PackedProjection<T> out;
  const T* query_bias;
  const T* value_bias;
  const T* out_bias;
  T* output;       // forward: rows x width
  const T* grad;   // backward: rows x width, the gradient of the output
  T* grad_tokens;  // backward: rows x tokens x width
};

// Where the gradients of the weights are in an array of `size` elements; that of the key is of the scaled one.
struct ModalityWeightGradients {
  explicit ModalityWeightGradients(int64_t width)
      : query(0),
        key(width * width),
        value(2 * key),
        out(3 * key),
        query_bias(4 * key),
        value_bias(query_bias + width),
        out_bias(value_bias + width),
        size(out_bias + width) {}
  int64_t query, key, value, out, query_bias, value_bias, out_bias, size;
};

template <typename T>
struct ModalityAttentionFunctions {
  // Rows of a block, and elements of T that its scratch holds.
  int64_t (*block)(int64_t width);
  int64_t (*scratch)(int64_t width);
  // Of the rows [begin, end). Backward adds the weights' gradients to `sums`.
  void (*forward)(const ModalityAttentionArgs<T>& args, int64_t begin, int64_t end, T* scratch);
  void (*backward)(const ModalityAttentionArgs<T>& args, int64_t begin, int64_t end, T* scratch, T* sums);
};

struct ModalityAttentionTable {
  ModalityAttentionFunctions<float> of_float[kMaxTokens];  // by the number of tokens, less one
  ModalityAttentionFunctions<double> of_double[kMaxTokens];
};

CRANE_KERNEL_TABLE(ModalityAttentionTable, modality_attention_table)

}  // namespace crane
