// A block of keys meets all queries, a few at a time, while it lies in the cache: scores, exponentials and their
// products with the values never leave it. Keys are packed so that neighbouring ones are the lanes of a vector.
// Backward finds the same scores again; the logarithm of the sum of exponentials is all that it needs of forward.
// Scores are in units of ln 2, so that powers of two give their exponentials. Compiled once for each instruction set.
#include "items_attention/kernel.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/exponential.h"
#include "common/vector.h"

namespace crane {
namespace CRANE_ISA {
namespace {

constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(float));
constexpr int kPanel = 2 * kLanes;  // keys whose scores are found together
constexpr int64_t kBlock = 256;     // keys of a block, a multiple of kPanel
constexpr float kLog2E = 1.44269504088896340736f;
// Queries at a time: sums of all of them with two vectors, and what they are made of, fit the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kQueries = 8;
#elif defined(__AVX__)
constexpr int kQueries = 6;
#else
constexpr int kQueries = 4;
#endif

using Vector = VectorOf<float, kLanes>;
using Floats = Vector::type;

int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
int64_t padded_width(int64_t width) { return rounded_up(width, kLanes); }

inline float sum_of(Floats v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

inline float largest_of(Floats v) {
  float largest = v[0];
  for (int i = 1; i < kLanes; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// The rows [begin, begin + count) in panels of kPanel rows, column by column; zeros beyond row `end`.
void pack_panels(Rows rows, int64_t begin, int64_t end, int64_t count, int64_t width, float* out) {
  for (int64_t first = begin; first < begin + count; first += kPanel) {
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t i = first; i < first + kPanel; ++i) *out++ = i < end ? rows.data[i * rows.stride + c] : 0.0f;
    }
  }
}

// The rows [begin, begin + count) of padded width and times `factor`; zeros beyond row `end`.
void pack_rows(Rows rows, int64_t begin, int64_t end, int64_t count, int64_t width, float factor, float* out) {
  const int64_t padded = padded_width(width);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < padded; ++c) {
      out[i * padded + c] = begin + i < end && c < width ? factor * rows.data[(begin + i) * rows.stride + c] : 0.0f;
    }
  }
}

// out[r][j] = q_r . k_j for the keys [0, n) of packed panels.
inline void products(const float* queries, const float* panels, int64_t n, int64_t width, float* out) {
  const int64_t padded = padded_width(width);
  for (int64_t j = 0; j < n; j += kPanel) {
    const float* panel = panels + j * width;
    Floats sum[kQueries][2] = {};
    for (int64_t c = 0; c < width; ++c) {
      const Floats first = Vector::load(panel + c * kPanel), second = Vector::load(panel + c * kPanel + kLanes);
      for (int r = 0; r < kQueries; ++r) {
        sum[r][0] += queries[r * padded + c] * first;
        sum[r][1] += queries[r * padded + c] * second;
      }
    }
    for (int r = 0; r < kQueries; ++r) {
      Vector::store(out + r * kBlock + j, sum[r][0]);
      Vector::store(out + r * kBlock + j + kLanes, sum[r][1]);
    }
  }
}

// Calls f with the number of vectors, as a constant, and the first column: two at a time, then the last.
template <typename F>
inline void for_columns(int64_t padded, const F& f) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= padded; c += 2 * kLanes) f(std::integral_constant<int, 2>(), c);
  if (c < padded) f(std::integral_constant<int, 1>(), c);
}

// out[r] = out[r] * factor[r] + the sum over j of weights[r][j] times row j.
inline void add_weighted(const float* weights, const float* rows, int64_t n, int64_t padded, const float* factor,
                         float* out) {
  for_columns(padded, [=](auto vectors, int64_t c) {
    constexpr int kVectors = vectors;
    Floats sum[kQueries][kVectors] = {};
    for (int64_t j = 0; j < n; ++j) {
      Floats row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = Vector::load(rows + j * padded + c + v * kLanes);
      for (int r = 0; r < kQueries; ++r) {
        for (int v = 0; v < kVectors; ++v) sum[r][v] += weights[r * kBlock + j] * row[v];
      }
    }
    for (int r = 0; r < kQueries; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        float* place = out + r * padded + c + v * kLanes;
        Vector::store(place, Vector::load(place) * factor[r] + sum[r][v]);
      }
    }
  });
}

// Adds to row j of `out` the sum over r of weights[r][j] times row r.
inline void add_outer(const float* weights, const float* rows, int64_t n, int64_t padded, float* out) {
  for_columns(padded, [=](auto vectors, int64_t c) {
    constexpr int kVectors = vectors;
    Floats row[kQueries][kVectors];
    for (int r = 0; r < kQueries; ++r) {
      for (int v = 0; v < kVectors; ++v) row[r][v] = Vector::load(rows + r * padded + c + v * kLanes);
    }
    for (int64_t j = 0; j < n; ++j) {
      float* place = out + j * padded + c;
      Floats sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = Vector::load(place + v * kLanes);
      for (int r = 0; r < kQueries; ++r) {
        for (int v = 0; v < kVectors; ++v) sum[v] += weights[r * kBlock + j] * row[r][v];
      }
      for (int v = 0; v < kVectors; ++v) Vector::store(place + v * kLanes, sum[v]);
    }
  });
}

inline void fill(float* scores, int64_t begin, int64_t end, float value) {
  for (int r = 0; r < kQueries; ++r) {
    for (int64_t j = begin; j < end; ++j) scores[r * kBlock + j] = value;
  }
}

// Parts of the scratch, one after the other, and how many floats they take: of a block of keys, of a few queries, of
// all queries.
struct Parts {
  Parts(float* scratch, int64_t queries, int64_t width) {
    const int64_t rounded = rounded_up(queries, kQueries), padded = padded_width(width);
    const auto take = [&](int64_t count) {
      float* taken = scratch == nullptr ? nullptr : scratch + size;
      size += count;
      return taken;
    };
    key_panels = take(kBlock * width);
    value_panels = take(kBlock * width);
    rows = take(kBlock * padded);
    grad_key = take(kBlock * padded);
    grad_value = take(kBlock * padded);
    scores = take(kQueries * kBlock);
    grad_scores = take(kQueries * kBlock);
    query = take(rounded * padded);
    grad = take(rounded * padded);
    result = take(rounded * padded);
    largest = take(rounded);
    sum = take(rounded);
  }
  float *key_panels, *value_panels, *rows, *grad_key, *grad_value, *scores, *grad_scores, *query, *grad, *result,
      *largest, *sum;
  int64_t size = 0;
};

int64_t scratch(int64_t n, int64_t width) { return Parts(nullptr, n, width).size; }

// The exponentials of a query's scores over `largest`, which grows with them; returns what the sums so far shrink by.
inline float exponentials(float* scores, int64_t n, float& largest, float& sum) {
  Floats above = Vector::load(scores);
  for (int64_t j = kLanes; j < n; j += kLanes) {
    const Floats other = Vector::load(scores + j);
    above = other > above ? other : above;
  }
  const float now = largest_of(above), before = largest;
  largest = now > before ? now : before;
  const float shift = largest == -INFINITY ? 0.0f : largest;  // no key counts yet
  const float factor = std::exp2(before - shift);
  Floats added = {};
  for (int64_t j = 0; j < n; j += kLanes) {
    const Floats weight = exponential2<kLanes>(Vector::load(scores + j) - shift);
    Vector::store(scores + j, weight);
    added += weight;
  }
  sum = sum * factor + sum_of(added);
  return factor;
}

void forward(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = args.n, width = args.width, padded = padded_width(width);
  const int64_t queries = rounded_up(end - begin, kQueries);
  const Parts parts(scratch, queries, width);
  pack_rows(args.query, begin, end, queries, width, args.scale * kLog2E, parts.query);
  std::fill_n(parts.result, queries * padded, 0.0f);
  std::fill_n(parts.largest, queries, -INFINITY);
  std::fill_n(parts.sum, queries, 0.0f);
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t keys = rounded_up(std::min(n - block, kBlock), kPanel);
    pack_panels(args.key, block, n, keys, width, parts.key_panels);
    pack_rows(args.value, block, n, keys, width, 1.0f, parts.rows);
    for (int64_t q = 0; q < queries; q += kQueries) {
      products(parts.query + q * padded, parts.key_panels, keys, width, parts.scores);
      if (block + keys > n) fill(parts.scores, n - block, keys, -INFINITY);
      float factor[kQueries];
      for (int r = 0; r < kQueries; ++r) {
        factor[r] = exponentials(parts.scores + r * kBlock, keys, parts.largest[q + r], parts.sum[q + r]);
      }
      add_weighted(parts.scores, parts.rows, keys, padded, factor, parts.result + q * padded);
    }
  }
  for (int64_t q = 0; q < end - begin; ++q) {
    float* out = args.output + (begin + q) * width;
    for (int64_t c = 0; c < width; ++c) out[c] = parts.result[q * padded + c] / parts.sum[q];
    args.log_sum[begin + q] = parts.largest[q] + std::log2(parts.sum[q]);
  }
}

// Writes what the keys [begin, end) give: their own gradients, and their part of the gradients of all queries.
void backward(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch, float* grad_query) {
  const int64_t n = args.n, width = args.width, padded = padded_width(width);
  const int64_t queries = rounded_up(n, kQueries);
  const Parts parts(scratch, n, width);
  pack_rows(args.query, 0, n, queries, width, args.scale * kLog2E, parts.query);
  pack_rows(args.grad, 0, n, queries, width, 1.0f, parts.grad);
  float *log_sum = parts.largest, *shared = parts.sum;  // shared: the gradient that all weights of a query share
  for (int64_t q = 0; q < queries; ++q) {
    log_sum[q] = q < n ? args.log_sum[q] : 0.0f;
    shared[q] = 0;
    for (int64_t c = 0; q < n && c < width; ++c) shared[q] += parts.grad[q * padded + c] * args.output[q * width + c];
  }
  std::fill_n(parts.result, queries * padded, 0.0f);
  float ones[kQueries];
  std::fill_n(ones, kQueries, 1.0f);
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t kept = std::min(end - block, kBlock), keys = rounded_up(kept, kPanel);
    pack_panels(args.key, block, end, keys, width, parts.key_panels);
    pack_panels(args.value, block, end, keys, width, parts.value_panels);
    pack_rows(args.key, block, end, keys, width, 1.0f, parts.rows);
    std::fill_n(parts.grad_key, keys * padded, 0.0f);
    std::fill_n(parts.grad_value, keys * padded, 0.0f);
    for (int64_t q = 0; q < queries; q += kQueries) {
      const float *query = parts.query + q * padded, *grad = parts.grad + q * padded;
      products(query, parts.key_panels, keys, width, parts.scores);
      products(grad, parts.value_panels, keys, width, parts.grad_scores);
      for (int r = 0; r < kQueries; ++r) {
        float *scores = parts.scores + r * kBlock, *grads = parts.grad_scores + r * kBlock;
        for (int64_t j = 0; j < keys; j += kLanes) {
          const Floats weight = exponential2<kLanes>(Vector::load(scores + j) - log_sum[q + r]);
          Vector::store(scores + j, weight);
          Vector::store(grads + j, weight * (Vector::load(grads + j) - shared[q + r]));
        }
      }
      if (keys > kept) {
        fill(parts.scores, kept, keys, 0);
        fill(parts.grad_scores, kept, keys, 0);
      }
      add_weighted(parts.grad_scores, parts.rows, keys, padded, ones, parts.result + q * padded);
      add_outer(parts.grad_scores, query, keys, padded, parts.grad_key);
      add_outer(parts.scores, grad, keys, padded, parts.grad_value);
    }
    for (int64_t j = 0; j < kept; ++j) {
      for (int64_t c = 0; c < width; ++c) {
        // The queries that this is a sum of are in units of ln 2.
        args.grad_key[(block + j) * width + c] = parts.grad_key[j * padded + c] / kLog2E;
        args.grad_value[(block + j) * width + c] = parts.grad_value[j * padded + c];
      }
    }
  }
  for (int64_t q = 0; q < n; ++q) {
    for (int64_t c = 0; c < width; ++c) grad_query[q * width + c] = args.scale * parts.result[q * padded + c];
  }
}

}  // namespace

const ItemsAttentionTable& items_attention_table() {
  static constexpr ItemsAttentionTable kTable = {scratch, forward, backward};
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
