// A tile of users meets the items a block at a time: the block's scores are computed with accumulators in registers,
// seen items among them become -inf, and what exceeds a user's k-th best so far enters that user's heap. A score is one
// chain of multiply-adds over the width, so it has the same bits wherever its user and item stand.
// Compiled once for each instruction set.
#include "masked_topk/kernel.h"

#include "common/vector.h"

namespace crane {
namespace CRANE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;  // users whose accumulators are in registers together
#else
constexpr int kRows = 6;
#endif
constexpr int kGroups = 48 / kRows;
constexpr int kTile = kRows * kGroups;
constexpr int64_t kBlockBytes = 128 * 1024;  // of packed items that are used by a whole tile before the next come
constexpr int64_t kMaxBlock = 512;

template <typename T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kPanel = 2 * kWidth<T>;

// Items that are scored before any is selected: a multiple of a panel.
template <typename T>
int64_t block_items(int64_t width) {
  const int64_t fitting = kBlockBytes / (static_cast<int64_t>(sizeof(T)) * (width > 0 ? width : 1));
  const int64_t items = fitting < kMaxBlock ? fitting : kMaxBlock;
  return items < kPanel<T> ? kPanel<T> : items / kPanel<T> * kPanel<T>;
}

template <typename T>
void pack(const TopkArgs<T>& args, int64_t p) {
  T* out = args.packed + p * kPanel<T> * args.width;
  for (int j = 0; j < kPanel<T>; ++j) {
    const int64_t i = p * kPanel<T> + j;
    const T* row = args.item + i * args.item_stride;
    for (int64_t c = 0; c < args.width; ++c) out[c * kPanel<T> + j] = i < args.n_items ? row[c] : T(0);
  }
}

// scores[r][0 .. kPanel) of kRows users; users holds kRows numbers for each of the width's columns.
template <typename T>
inline void score(const T* users, const T* panel, int64_t width, T* scores, int64_t stride) {
  using Vector = VectorOf<T, kWidth<T>>;
  typename Vector::type sum[kRows][2] = {};
  for (int64_t c = 0; c < width; ++c) {
    const typename Vector::type first = Vector::load(panel + c * kPanel<T>);
    const typename Vector::type second = Vector::load(panel + c * kPanel<T> + kWidth<T>);
    for (int r = 0; r < kRows; ++r) {
      const T u = users[c * kRows + r];
      sum[r][0] += u * first;
      sum[r][1] += u * second;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    Vector::store(scores + r * stride, sum[r][0]);
    Vector::store(scores + r * stride + kWidth<T>, sum[r][1]);
  }
}

// The k best so far of one user, as a binary heap whose root is the worst of them.
template <typename T>
struct Heap {
  T* score;
  int64_t* index;
  int64_t size;

  bool worse(T score_a, int64_t index_a, int64_t b) const {
    return score_a < score[b] || (score_a == score[b] && index_a > index[b]);
  }

  // Puts (s, i) in place of the root of the first n entries, and moves it to where it belongs.
  void replace_root(T s, int64_t i, int64_t n) {
    int64_t hole = 0;
    for (int64_t child = 1; child < n; child = 2 * hole + 1) {
      if (child + 1 < n && worse(score[child + 1], index[child + 1], child)) ++child;
      if (worse(s, i, child)) break;
      score[hole] = score[child];
      index[hole] = index[child];
      hole = child;
    }
    score[hole] = s;
    index[hole] = i;
  }

  // Turns the heap into the entries in descending order; what was never filled becomes (-inf, -1).
  void sort() {
    for (int64_t n = size - 1; n > 0; --n) {
      const T s = score[0];
      const int64_t i = index[0];
      replace_root(score[n], index[n], n);
      score[n] = s;
      index[n] = i;
    }
    for (int64_t j = 0; j < size; ++j) {
      if (score[j] == -__builtin_huge_val()) index[j] = -1;
    }
  }
};

// Whether any of the kPanel scores exceeds the limit.
template <typename T>
inline bool any_above(const T* scores, T limit) {
  using Vector = VectorOf<T, kWidth<T>>;
  const auto above = (Vector::load(scores) > limit) | (Vector::load(scores + kWidth<T>) > limit);
  int64_t bits[kVectorBytes / 8];
  __builtin_memcpy(bits, &above, sizeof(bits));
  int64_t any = 0;
  for (int64_t b : bits) any |= b;
  return any != 0;
}

template <typename T>
void select(const T* scores, int64_t first_item, int64_t n, Heap<T> heap) {
  for (int64_t j = 0; j < n; j += kPanel<T>) {
    if (!any_above(scores + j, heap.score[0])) continue;
    const int64_t end = j + kPanel<T> < n ? j + kPanel<T> : n;
    for (int64_t item = j; item < end; ++item) {
      if (scores[item] > heap.score[0]) heap.replace_root(scores[item], first_item + item, heap.size);
    }
  }
}

template <typename T>
int64_t scratch(int64_t width) {
  return kTile * (width + block_items<T>(width));
}

template <typename T>
void pack_users(const TopkArgs<T>& args, int64_t begin, int64_t n, T* out) {
  for (int64_t u = 0; u < kTile; ++u) {
    const T* row = args.user + (begin + u) * args.user_stride;
    T* column = out + u / kRows * kRows * args.width + u % kRows;
    for (int64_t c = 0; c < args.width; ++c) column[c * kRows] = u < n ? row[c] : T(0);
  }
}

template <typename T>
void rank(const TopkArgs<T>& args, int64_t begin, T* scratch) {
  const T lowest = -static_cast<T>(__builtin_huge_val());
  const int64_t n = args.n_users - begin < kTile ? args.n_users - begin : kTile;
  const int64_t block = block_items<T>(args.width);
  T* users = scratch;
  T* scores = scratch + kTile * args.width;
  pack_users(args, begin, n, users);
  int64_t seen[kTile];
  for (int64_t u = 0; u < n; ++u) {
    seen[u] = args.seen_rowptr == nullptr ? 0 : args.seen_rowptr[begin + u];
    for (int64_t j = 0; j < args.k; ++j) {
      args.scores[(begin + u) * args.k + j] = lowest;
      args.indices[(begin + u) * args.k + j] = args.n_items;
    }
  }
  for (int64_t first = 0; first < args.n_items; first += block) {
    const int64_t items = args.n_items - first < block ? args.n_items - first : block;
    for (int64_t group = 0; group * kRows < n; ++group) {
      for (int64_t j = 0; j < items; j += kPanel<T>) {
        score(users + group * kRows * args.width, args.packed + (first + j) * args.width, args.width,
              scores + group * kRows * block + j, block);
      }
    }
    for (int64_t u = 0; u < n; ++u) {
      T* row = scores + u * block;
      if (args.seen_rowptr != nullptr) {
        const int64_t end = args.seen_rowptr[begin + u + 1];
        for (; seen[u] < end && args.seen_col[seen[u]] < first + items; ++seen[u]) {
          row[args.seen_col[seen[u]] - first] = lowest;
        }
      }
      const int64_t out = (begin + u) * args.k;
      select(row, first, items, Heap<T>{args.scores + out, args.indices + out, args.k});
    }
  }
  for (int64_t u = 0; u < n; ++u) {
    const int64_t out = (begin + u) * args.k;
    Heap<T>{args.scores + out, args.indices + out, args.k}.sort();
  }
}

template <typename T>
constexpr TopkFunctions<T> functions() {
  return {kTile, kPanel<T>, pack<T>, scratch<T>, rank<T>};
}

}  // namespace

const TopkTable& topk_table() {
  static constexpr TopkTable kTable = {functions<float>(), functions<double>()};
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
