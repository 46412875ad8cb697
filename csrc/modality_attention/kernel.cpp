// A block of rows small enough for the cache goes through all of it: projections, scores, softmax, mean, output.
// Arithmetic is saved where the algebra allows, for M tokens x_0 .. x_{M-1} of a row and one head:
//  - softmax ignores what all scores of a query share, so keys are those of the differences x_j - x_0, j >= 1, whose
//    scores are compared with 0; the key's bias has no effect;
//  - a score q_i . k_j = (W_q x_i + b_q) . k_j = x_i . (W_q^T k_j) + b_q . k_j needs one product with W_q for each key
//    and not for each token; u_j = W_q^T k_j below;
//  - the mean over queries is linear and weights sum to one, so the context is W_v t + b_v with t = sum_j w_j x_j, and
//    w_j the mean over queries of the attention to token j: one product with W_v for each row and not for each token.
// Backward computes all of this again and goes through it in reverse. Compiled once for each instruction set.
#include "modality_attention/kernel.h"

#include <algorithm>
#include <utility>

#include "common/gemm.h"
#include "common/vector.h"

namespace crane {
namespace CRANE_ISA {
namespace {

constexpr int64_t kBlockBytes = 48 * 1024;  // of a block's tokens
constexpr int64_t kMinBlock = 2 * kTileRows;
constexpr int64_t kMaxBlock = 16 * kTileRows;

template <typename T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));

// Calls f<V>(column) for vectors V of columns, then for single ones, until all of [0, n) were called for.
template <typename T, typename F>
inline void for_columns(int64_t n, const F& f) {
  int64_t column = 0;
  for (; column + kWidth<T> <= n; column += kWidth<T>) f.template operator()<VectorOf<T, kWidth<T>>>(column);
  for (; column < n; ++column) f.template operator()<VectorOf<T, 1>>(column);
}

template <typename T, int kLanes>
inline T horizontal_sum(typename VectorOf<T, kLanes>::type v) {
  if constexpr (kLanes == 1) {
    return v;
  } else {
    const auto half = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>, auto first) {
      return __builtin_shufflevector(v, v, (kIndex + decltype(first)::value)...);
    };
    constexpr auto kIndices = std::make_integer_sequence<int, kLanes / 2>();
    if constexpr (kLanes == 2) {
      return v[0] + v[1];
    } else {
      return horizontal_sum<T, kLanes / 2>(half(kIndices, std::integral_constant<int, 0>()) +
                                           half(kIndices, std::integral_constant<int, kLanes / 2>()));
    }
  }
}

// out[i][j] = a_i . b_j for kA vectors a_i and kB vectors b_j of n elements.
template <typename T, int kA, int kB>
inline void dots(int64_t n, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T (&out)[kA][kB]) {
  using Vector = VectorOf<T, kWidth<T>>;
  typename Vector::type sum[kA][kB] = {};
  int64_t c = 0;
  for (; c + kWidth<T> <= n; c += kWidth<T>) {
    for (int i = 0; i < kA; ++i) {
      for (int j = 0; j < kB; ++j) sum[i][j] += Vector::load(a + i * a_stride + c) * Vector::load(b + j * b_stride + c);
    }
  }
  for (int i = 0; i < kA; ++i) {
    for (int j = 0; j < kB; ++j) {
      out[i][j] = horizontal_sum<T, kWidth<T>>(sum[i][j]);
      for (int64_t rest = c; rest < n; ++rest) out[i][j] += a[i * a_stride + rest] * b[j * b_stride + rest];
    }
  }
}

inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

// The attention of each query of a row and head, and its mean over the queries.
template <typename T, int kTokens>
struct Attention {
  T weight[kTokens][kTokens];
  T mean[kTokens];
};

// scores[i][j] is that of query i and key j + 1, less that of key 0.
template <typename T, int kTokens>
inline void softmax(const T (&scores)[kTokens][kTokens - 1], Attention<T, kTokens>& attention) {
  for (int j = 0; j < kTokens; ++j) attention.mean[j] = 0;
  for (int i = 0; i < kTokens; ++i) {
    T largest = 0;
    for (const T score : scores[i]) largest = score > largest ? score : largest;
    T* weight = attention.weight[i];
    T sum = weight[0] = exponential(-largest);
    for (int j = 1; j < kTokens; ++j) sum += weight[j] = exponential(scores[i][j - 1] - largest);
    for (int j = 0; j < kTokens; ++j) {
      weight[j] /= sum;
      attention.mean[j] += weight[j] / kTokens;
    }
  }
}

// One block of rows in its scratch. Arrays of "others" hold, for each token but the first, all rows of the block.
template <typename T, int kTokens>
class Block {
 public:
  static constexpr int kOthers = kTokens - 1;

  static int64_t rows(int64_t width) {
    const int64_t fitting = kBlockBytes / (static_cast<int64_t>(sizeof(T)) * kTokens * width) / kTileRows * kTileRows;
    return fitting < kMinBlock ? kMinBlock : fitting > kMaxBlock ? kMaxBlock : fitting;
  }

  static int64_t scratch(int64_t width) {
    return rows(width) * ((5 * kOthers + 4) * width + sizeof(Attention<T, kTokens>) / sizeof(T)) + width;
  }

  Block(const ModalityAttentionArgs<T>& args, int64_t begin, int64_t end, T* scratch)
      : args_(args),
        tokens_(args.tokens + begin * args.row_stride),
        begin_(begin),
        n_(end - begin),
        d_(args.width),
        head_width_(args.width / args.heads) {
    const auto take = [&](int64_t vectors) {
      T* taken = scratch;
      scratch += vectors * n_ * d_;
      return taken;
    };
    difference_ = take(kOthers);
    key_ = take(kOthers);
    mixed_query_ = take(kOthers);
    mixed_ = take(1);
    context_ = take(1);
    grad_context_ = take(1);
    grad_mixed_ = take(1);
    grad_key_ = take(kOthers);
    grad_mixed_query_ = take(kOthers);
    grad_query_bias_ = scratch;
    attention_ = reinterpret_cast<Attention<T, kTokens>*>(scratch + d_);
  }

  void forward() {
    keys();
    for (int64_t h = 0; h < args_.heads; ++h) {
      attend(h);
      context(h);
    }
    gemm(n_, d_, d_, plain<T>(context_, d_), args_.out.transpose, d_,
         AssignSum<T>{args_.output + begin_ * d_, d_, args_.out_bias, 0});
  }

  void backward(T* sums) {
    std::fill_n(grad_query_bias_, d_, T(0));
    const ModalityWeightGradients at(d_);
    const T* grad = args_.grad + begin_ * d_;
    keys();
    gemm(n_, d_, d_, plain(grad, d_), args_.out.weight, d_, Assign<T>{grad_context_, d_});
    for (int64_t h = 0; h < args_.heads; ++h) {
      const int64_t first = h * head_width_;
      attend(h);
      context(h);
      gemm(n_, d_, head_width_, plain<T>(grad_context_ + first, d_), args_.value.weight + first * d_, d_,
           Assign<T>{grad_mixed_, d_});
      gemm(head_width_, d_, n_, transposed<T>(grad_context_ + first, d_), mixed_, d_,
           AddTo<T>{sums + at.value + first * d_, d_});
      backward_of_attention(h);
      gemm(kOthers * n_, head_width_, d_, plain<T>(grad_mixed_query_, d_), args_.query.transpose + first, d_,
           AddTo<T>{grad_key_ + first, d_});
      gemm(head_width_, d_, kOthers * n_, transposed<T>(key_ + first, d_), grad_mixed_query_, d_,
           AddTo<T>{sums + at.query + first * d_, d_});
    }
    gemm(d_, d_, n_, transposed(grad, d_), context_, d_, AddTo<T>{sums + at.out, d_});
    gemm(d_, d_, kOthers * n_, transposed<T>(grad_key_, d_), difference_, d_, AddTo<T>{sums + at.key, d_});
    for (int64_t c = 0; c < d_; ++c) sums[at.query_bias + c] += grad_query_bias_[c];
    add_rows(grad_context_, sums + at.value_bias);
    add_rows(grad, sums + at.out_bias);
    backward_of_keys();
  }

 private:
  const T* token(int64_t r, int i) const { return tokens_ + r * args_.row_stride + i * args_.token_stride; }
  T* grad_token(int64_t r, int i) const { return args_.grad_tokens + ((begin_ + r) * kTokens + i) * d_; }
  // Row r of token j + 1 in an array of others.
  T* other(T* array, int j, int64_t r) const { return array + (j * n_ + r) * d_; }

  // Keys of the tokens' differences from the first.
  void keys() {
    for (int j = 0; j < kOthers; ++j) {
      for (int64_t r = 0; r < n_; ++r) {
        const T *one = token(r, j + 1), *first = token(r, 0);
        T* out = other(difference_, j, r);
        for_columns<T>(d_, [&]<typename V>(int64_t c) { V::store(out + c, V::load(one + c) - V::load(first + c)); });
      }
    }
    gemm(kOthers * n_, d_, d_, plain<T>(difference_, d_), args_.key.transpose, d_, Assign<T>{key_, d_});
  }

  // The attention of a head, and the tokens mixed by it.
  void attend(int64_t h) {
    const int64_t first = h * head_width_;
    gemm(kOthers * n_, d_, head_width_, plain<T>(key_ + first, d_), args_.query.weight + first * d_, d_,
         Assign<T>{mixed_query_, d_});
    for (int64_t r = 0; r < n_; ++r) {
      if constexpr (kOthers > 0) {
        T scores[kTokens][kOthers], shared[1][kOthers];
        dots(d_, token(r, 0), args_.token_stride, other(mixed_query_, 0, r), n_ * d_, scores);
        dots(head_width_, args_.query_bias + first, 0, other(key_, 0, r) + first, n_ * d_, shared);
        for (auto& score : scores) {
          for (int j = 0; j < kOthers; ++j) score[j] += shared[0][j];
        }
        softmax(scores, attention_[r]);
      } else {
        attention_[r] = {{{1}}, {1}};
      }
      const T* weight = attention_[r].mean;
      T* out = mixed_ + r * d_;
      for_columns<T>(d_, [&]<typename V>(int64_t c) {
        typename V::type sum = weight[0] * V::load(token(r, 0) + c);
        for (int j = 1; j < kTokens; ++j) sum += weight[j] * V::load(token(r, j) + c);
        V::store(out + c, sum);
      });
    }
  }

  void context(int64_t h) {
    const int64_t first = h * head_width_;
    gemm(n_, head_width_, d_, plain<T>(mixed_, d_), args_.value.transpose + first, d_,
         AssignSum<T>{context_ + first, d_, args_.value_bias + first, 0});
  }

  // From the gradient of a head's mixed tokens to those of the tokens, of the mixed queries and, through the query's
  // bias, of the keys and of that bias.
  void backward_of_attention(int64_t h) {
    for (int64_t r = 0; r < n_; ++r) {
      const T* grad_mixed = grad_mixed_ + r * d_;
      T grad_scores[kTokens][kTokens];
      grad_of_scores(attention_[r], r, grad_scores);
      for_columns<T>(d_, [&]<typename V>(int64_t c) {
        const typename V::type from_mixed = V::load(grad_mixed + c);
        for (int i = 0; i < kTokens; ++i) {
          typename V::type sum = attention_[r].mean[i] * from_mixed;
          for (int j = 0; j < kOthers; ++j) sum += grad_scores[i][j + 1] * V::load(other(mixed_query_, j, r) + c);
          T* out = grad_token(r, i) + c;
          V::store(out, h == 0 ? sum : V::load(out) + sum);
        }
        for (int j = 0; j < kOthers; ++j) {
          typename V::type sum = grad_scores[0][j + 1] * V::load(token(r, 0) + c);
          for (int i = 1; i < kTokens; ++i) sum += grad_scores[i][j + 1] * V::load(token(r, i) + c);
          V::store(other(grad_mixed_query_, j, r) + c, sum);
        }
      });
      for (int j = 0; j < kOthers; ++j) {
        T sum = 0;
        for (int i = 0; i < kTokens; ++i) sum += grad_scores[i][j + 1];
        backward_of_query_bias(h, sum, other(key_, j, r), other(grad_key_, j, r));
      }
    }
  }

  void grad_of_scores(const Attention<T, kTokens>& attention, int64_t r, T (&grad_scores)[kTokens][kTokens]) const {
    T grad_mean[1][kTokens];
    dots(d_, grad_mixed_ + r * d_, 0, token(r, 0), args_.token_stride, grad_mean);
    for (int i = 0; i < kTokens; ++i) {
      T mean = 0;
      for (int j = 0; j < kTokens; ++j) mean += attention.weight[i][j] * grad_mean[0][j];
      for (int j = 0; j < kTokens; ++j) {
        grad_scores[i][j] = attention.weight[i][j] * (grad_mean[0][j] - mean) / kTokens;
      }
    }
  }

  void backward_of_query_bias(int64_t h, T grad_score, const T* key, T* grad_key) const {
    const int64_t first = h * head_width_;
    for_columns<T>(head_width_, [&]<typename V>(int64_t c) {
      V::store(grad_key + first + c, grad_score * V::load(args_.query_bias + first + c));
      T* bias = grad_query_bias_ + first + c;
      V::store(bias, V::load(bias) + grad_score * V::load(key + first + c));
    });
  }

  void backward_of_keys() {
    gemm(kOthers * n_, d_, d_, plain<T>(grad_key_, d_), args_.key.weight, d_, Assign<T>{grad_mixed_query_, d_});
    for (int j = 0; j < kOthers; ++j) {
      for (int64_t r = 0; r < n_; ++r) {
        const T* in = other(grad_mixed_query_, j, r);
        T *one = grad_token(r, j + 1), *first = grad_token(r, 0);
        for_columns<T>(d_, [&]<typename V>(int64_t c) {
          V::store(one + c, V::load(one + c) + V::load(in + c));
          V::store(first + c, V::load(first + c) - V::load(in + c));
        });
      }
    }
  }

  // The block's own sum first: added to the sum of all rows before them, rows one by one would lose their last digits.
  void add_rows(const T* in, T* sum) const {
    for_columns<T>(d_, [&]<typename V>(int64_t c) {
      typename V::type of_block = V::load(in + c);
      for (int64_t r = 1; r < n_; ++r) of_block += V::load(in + r * d_ + c);
      V::store(sum + c, V::load(sum + c) + of_block);
    });
  }

  const ModalityAttentionArgs<T>& args_;
  const T* tokens_;
  int64_t begin_, n_, d_, head_width_;
  T *difference_, *key_, *mixed_query_, *mixed_, *context_;
  T *grad_context_, *grad_mixed_, *grad_key_, *grad_mixed_query_;
  T* grad_query_bias_;  // of the block's rows
  Attention<T, kTokens>* attention_;
};

// Calls f(begin, end) for each block of the rows.
template <typename T, int kTokens, typename F>
void for_blocks(int64_t width, int64_t begin, int64_t end, const F& f) {
  const int64_t rows = Block<T, kTokens>::rows(width);
  for (; begin < end; begin += rows) f(begin, end - begin < rows ? end : begin + rows);
}

template <typename T, int kTokens>
void forward(const ModalityAttentionArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  for_blocks<T, kTokens>(args.width, begin, end,
                         [&](int64_t first, int64_t last) { Block<T, kTokens>(args, first, last, scratch).forward(); });
}

template <typename T, int kTokens>
void backward(const ModalityAttentionArgs<T>& args, int64_t begin, int64_t end, T* scratch, T* sums) {
  for_blocks<T, kTokens>(args.width, begin, end, [&](int64_t first, int64_t last) {
    Block<T, kTokens>(args, first, last, scratch).backward(sums);
  });
}

template <typename T, int kTokens>
constexpr ModalityAttentionFunctions<T> functions() {
  return {Block<T, kTokens>::rows, Block<T, kTokens>::scratch, forward<T, kTokens>, backward<T, kTokens>};
}

}  // namespace

const ModalityAttentionTable& modality_attention_table() {
  static constexpr ModalityAttentionTable kTable = {
      {functions<float, 1>(), functions<float, 2>(), functions<float, 3>(), functions<float, 4>()},
      {functions<double, 1>(), functions<double, 2>(), functions<double, 3>(), functions<double, 4>()}};
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
