// Attention of many queries to many keys in float32 and its gradients, for one batch entry and head: see kernel.cpp.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace crane {

// Rows of `width` floats that follow each other; rows are `stride` floats apart.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;
};

struct ItemsAttentionArgs {
  Rows query;
  Rows key;
  Rows value;
  int64_t n;  // queries, and keys
  int64_t width;
  float scale;  // of the scores
  // What forward writes, dense n x width, and n: the logarithm to base 2 of the sum of exponentials of a query's
  // scores.
  float* output = nullptr;
  float* log_sum = nullptr;
  // Backward. The gradients are dense n x width.
  Rows grad{};  // of the output
  float* grad_key = nullptr;
  float* grad_value = nullptr;
};

struct ItemsAttentionTable {
  // Floats of scratch that either function needs for n queries and keys of this width.
  int64_t (*scratch)(int64_t n, int64_t width);
  // For the queries [begin, end).
  void (*forward)(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch);
  // For the keys [begin, end): their gradients, and to `grad_query`, dense n x width, their part of the queries'.
  void (*backward)(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch, float* grad_query);
};

CRANE_KERNEL_TABLE(ItemsAttentionTable, items_attention_table)

}  // namespace crane
