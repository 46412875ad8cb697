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
  // Backward.
  Rows grad{};                  // of the output
  float* grad_query = nullptr;  // dense n x width
};

struct ItemsAttentionTable {
  // Floats of scratch that either function needs for n keys of this width.
  int64_t (*scratch)(int64_t n, int64_t width);
  // Floats of the sums that backward adds to: gradients of the keys, then of the values.
  int64_t (*sums)(int64_t n, int64_t width);
  // For the queries [begin, end).
  void (*forward)(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch);
  // The same; writes to `sums` what these queries add to the gradients of keys and values.
  void (*backward)(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch, float* sums);
  // The gradients of the keys (which = 0) or of the values (1), dense n x width, of `chunks` sums after each other.
  void (*total)(const float* sums, int64_t chunks, int64_t n, int64_t width, int which, float* out);
};

CRANE_KERNEL_TABLE(ItemsAttentionTable, items_attention_table)

}  // namespace crane
