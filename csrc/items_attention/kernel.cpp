// A few queries meet the keys a block at a time: scores, exponentials and their products with the values never leave
// the cache. Keys are packed so that neighbouring ones are the lanes of a vector. Backward finds the same scores again;
// the logarithm of the sum of exponentials is all that it needs of forward. Scores are in units of ln 2, so that powers
// of two give their exponentials. Compiled once for each instruction set.
#include "items_attention/kernel.h"

#include <cmath>

#include "common/exponential.h"
#include "common/vector.h"

namespace crane {
namespace CRANE_ISA {
namespace {

constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(float));
constexpr int kPanel = 2 * kLanes;  // keys whose scores are found together
constexpr int64_t kBlock = 512;     // keys of a block, a multiple of kPanel
constexpr float kLog2E = 1.44269504088896340736f;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kQueries = 8;
#else
constexpr int kQueries = 4;
#endif

using Vector = VectorOf<float, kLanes>;
using Floats = Vector::type;

int64_t padded_rows(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }
int64_t padded_width(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

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

// Panels of kPanel rows, column by column; zeros beyond the last row.
void pack_panels(Rows rows, int64_t n, int64_t width, float* out) {
  for (int64_t first = 0; first < n; first += kPanel) {
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t i = first; i < first + kPanel; ++i) *out++ = i < n ? rows.data[i * rows.stride + c] : 0.0f;
    }
  }
}

// `count` rows from `begin` on, of padded width and times `factor`; zeros beyond row `end`.
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

// out[r] = out[r] * factor[r] + the sum over j of weights[r][j] times row j.
inline void add_weighted(const float* weights, const float* rows, int64_t n, int64_t padded, const float* factor,
                         float* out) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    Floats sum[kQueries] = {};
    for (int64_t j = 0; j < n; ++j) {
      const Floats row = Vector::load(rows + j * padded + c);
      for (int r = 0; r < kQueries; ++r) sum[r] += weights[r * kBlock + j] * row;
    }
    for (int r = 0; r < kQueries; ++r) {
      float* place = out + r * padded + c;
      Vector::store(place, Vector::load(place) * factor[r] + sum[r]);
    }
  }
}

// Adds to row j of `out` the sum over r of weights[r][j] times row r.
inline void add_outer(const float* weights, const float* rows, int64_t n, int64_t padded, float* out) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    Floats row[kQueries];
    for (int r = 0; r < kQueries; ++r) row[r] = Vector::load(rows + r * padded + c);
    for (int64_t j = 0; j < n; ++j) {
      float* place = out + j * padded + c;
      Floats sum = Vector::load(place);
      for (int r = 0; r < kQueries; ++r) sum += weights[r * kBlock + j] * row[r];
      Vector::store(place, sum);
    }
  }
}

inline void fill(float* scores, int64_t begin, int64_t end, float value) {
  for (int r = 0; r < kQueries; ++r) {
    for (int64_t j = begin; j < end; ++j) scores[r * kBlock + j] = value;
  }
}

// Parts of the scratch, one after the other.
struct Parts {
  Parts(float* scratch, int64_t n, int64_t width) {
    const int64_t rows = padded_rows(n), padded = padded_width(width);
    const auto take = [&](int64_t size) {
      float* taken = scratch;
      scratch += size;
      return taken;
    };
    key_panels = take(rows * width);
    value_panels = take(rows * width);
    key_rows = take(rows * padded);
    scores = take(kQueries * kBlock);
    grad_scores = take(kQueries * kBlock);
    query = take(kQueries * padded);
    grad = take(kQueries * padded);
    result = take(kQueries * padded);
  }
  float *key_panels, *value_panels, *key_rows, *scores, *grad_scores, *query, *grad, *result;
};

int64_t scratch(int64_t n, int64_t width) {
  const int64_t rows = padded_rows(n), padded = padded_width(width);
  return rows * (2 * width + padded) + kQueries * (2 * kBlock + 3 * padded);
}

int64_t sums(int64_t n, int64_t width) { return 2 * padded_rows(n) * padded_width(width); }

void total(const float* sums, int64_t chunks, int64_t n, int64_t width, int which, float* out) {
  const int64_t padded = padded_width(width), size = padded_rows(n) * padded;
  const float factor =
      which == 0 ? 1 / kLog2E : 1;  // the queries that the keys' gradients are sums of are in units of ln 2
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < padded; c += kLanes) {
      Floats sum = {};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += Vector::load(sums + (2 * chunk + which) * size + i * padded + c);
      }
      sum *= factor;
      const int64_t kept = width - c < kLanes ? width - c : kLanes;
      __builtin_memcpy(out + i * width + c, &sum, kept * sizeof(float));
    }
  }
}

void forward(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch) {
  const int64_t n = args.n, width = args.width, rows = padded_rows(n), padded = padded_width(width);
  const Parts parts(scratch, n, width);
  float* values = parts.key_rows;
  pack_panels(args.key, n, width, parts.key_panels);
  pack_rows(args.value, 0, n, rows, width, 1.0f, values);
  for (int64_t first = begin; first < end; first += kQueries) {
    pack_rows(args.query, first, end, kQueries, width, args.scale * kLog2E, parts.query);
    float largest[kQueries], sum[kQueries] = {}, factor[kQueries];
    for (float& x : largest) x = -INFINITY;
    for (int64_t i = 0; i < kQueries * padded; ++i) parts.result[i] = 0;
    for (int64_t block = 0; block < rows; block += kBlock) {
      const int64_t keys = rows - block < kBlock ? rows - block : kBlock;
      products(parts.query, parts.key_panels + block * width, keys, width, parts.scores);
      if (block + keys > n) fill(parts.scores, n - block, keys, -INFINITY);
      for (int r = 0; r < kQueries; ++r) {
        float* scores = parts.scores + r * kBlock;
        Floats above = Vector::load(scores);
        for (int64_t j = kLanes; j < keys; j += kLanes) {
          const Floats other = Vector::load(scores + j);
          above = other > above ? other : above;
        }
        const float now = largest_of(above), before = largest[r];
        largest[r] = now > before ? now : before;
        factor[r] = std::exp2(before - largest[r]);
        Floats added = {};
        for (int64_t j = 0; j < keys; j += kLanes) {
          const Floats weight = exponential2<kLanes>(Vector::load(scores + j) - largest[r]);
          Vector::store(scores + j, weight);
          added += weight;
        }
        sum[r] = sum[r] * factor[r] + sum_of(added);
      }
      add_weighted(parts.scores, values + block * padded, keys, padded, factor, parts.result);
    }
    for (int r = 0; r < kQueries && first + r < end; ++r) {
      for (int64_t c = 0; c < width; ++c) args.output[(first + r) * width + c] = parts.result[r * padded + c] / sum[r];
      args.log_sum[first + r] = largest[r] + std::log2(sum[r]);
    }
  }
}

void backward(const ItemsAttentionArgs& args, int64_t begin, int64_t end, float* scratch, float* sums) {
  const int64_t n = args.n, width = args.width, rows = padded_rows(n), padded = padded_width(width);
  const Parts parts(scratch, n, width);
  pack_panels(args.key, n, width, parts.key_panels);
  pack_panels(args.value, n, width, parts.value_panels);
  pack_rows(args.key, 0, n, rows, width, 1.0f, parts.key_rows);
  float *grad_key = sums, *grad_value = sums + rows * padded;
  for (int64_t i = 0; i < 2 * rows * padded; ++i) sums[i] = 0;
  float ones[kQueries];
  for (float& x : ones) x = 1;
  for (int64_t first = begin; first < end; first += kQueries) {
    pack_rows(args.query, first, end, kQueries, width, args.scale * kLog2E, parts.query);
    pack_rows(args.grad, first, end, kQueries, width, 1.0f, parts.grad);
    float log_sum[kQueries] = {}, shared[kQueries] = {};  // shared: the gradient that all weights of a query share
    for (int r = 0; r < kQueries && first + r < end; ++r) {
      log_sum[r] = args.log_sum[first + r];
      const float* output = args.output + (first + r) * width;
      for (int64_t c = 0; c < width; ++c) shared[r] += parts.grad[r * padded + c] * output[c];
    }
    for (int64_t i = 0; i < kQueries * padded; ++i) parts.result[i] = 0;
    for (int64_t block = 0; block < rows; block += kBlock) {
      const int64_t keys = rows - block < kBlock ? rows - block : kBlock;
      products(parts.query, parts.key_panels + block * width, keys, width, parts.scores);
      products(parts.grad, parts.value_panels + block * width, keys, width, parts.grad_scores);
      for (int r = 0; r < kQueries; ++r) {
        float *scores = parts.scores + r * kBlock, *grads = parts.grad_scores + r * kBlock;
        for (int64_t j = 0; j < keys; j += kLanes) {
          const Floats weight = exponential2<kLanes>(Vector::load(scores + j) - log_sum[r]);
          Vector::store(scores + j, weight);
          Vector::store(grads + j, weight * (Vector::load(grads + j) - shared[r]));
        }
      }
      if (block + keys > n) {
        fill(parts.scores, n - block, keys, 0);
        fill(parts.grad_scores, n - block, keys, 0);
      }
      add_weighted(parts.grad_scores, parts.key_rows + block * padded, keys, padded, ones, parts.result);
      add_outer(parts.grad_scores, parts.query, keys, padded, grad_key + block * padded);
      add_outer(parts.scores, parts.grad, keys, padded, grad_value + block * padded);
    }
    for (int r = 0; r < kQueries && first + r < end; ++r) {
      float* out = args.grad_query + (first + r) * width;
      for (int64_t c = 0; c < width; ++c) out[c] = args.scale * parts.result[r * padded + c];
    }
  }
}

}  // namespace

const ItemsAttentionTable& items_attention_table() {
  static constexpr ItemsAttentionTable kTable = {scratch, sums, forward, backward, total};
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
