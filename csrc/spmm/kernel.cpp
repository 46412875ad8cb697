// A row of y is accumulated in registers, a block of columns at a time, while the rows of x that its edges name stream
// through; the row that a later edge names is prefetched, as their order is known and the processor cannot guess it.
// Compiled once for each instruction set.
#include "spmm/kernel.h"

#include "common/vector.h"

namespace crane {
namespace CRANE_ISA {
namespace {

// Registers of accumulators a block holds: half of what the instruction set has, at least.
#if defined(__AVX512F__)
constexpr int kMaxVectors = 16;
#else
constexpr int kMaxVectors = 8;
#endif

// How many edges ahead rows of x are prefetched: measured, 16 to 24 are alike, none halves the speed.
constexpr int64_t kAhead = 20;

template <typename T, typename Index>
struct Edges {
  const SpmmArgs<T, Index>& args;
  int64_t begin, end;
  int64_t last;  // edges beyond are not prefetched
};

// Columns [column, column + kVectors * kWidth) of the sum over edges.
template <int kWidth, int kVectors, typename T, typename Index, typename Store>
inline __attribute__((always_inline)) void block(const Edges<T, Index>& edges, int64_t column, const Store& store) {
  using Vector = VectorOf<T, kWidth>;
  const SpmmArgs<T, Index>& args = edges.args;
  const T* x = args.x + column;
  typename Vector::type sum[kVectors] = {};
  for (int64_t e = edges.begin; e < edges.end; ++e) {
    if (e + kAhead < edges.last) {
      const char* next = reinterpret_cast<const char*>(x + static_cast<int64_t>(args.col[e + kAhead]) * args.x_stride);
      for (int k = 0; k < kVectors * kWidth * static_cast<int>(sizeof(T)); k += 64) __builtin_prefetch(next + k);
    }
    const T value = args.value[e];
    const T* row = x + static_cast<int64_t>(args.col[e]) * args.x_stride;
    for (int k = 0; k < kVectors; ++k) sum[k] += value * Vector::load(row + k * kWidth);
  }
  for (int k = 0; k < kVectors; ++k) store.template operator()<Vector>(column + k * kWidth, sum[k]);
}

template <int kWidth, int kVectors, typename T, typename Index, typename Store>
inline void block_of(int vectors, const Edges<T, Index>& edges, int64_t column, const Store& store) {
  if (vectors == kVectors) {
    block<kWidth, kVectors>(edges, column, store);
  } else if constexpr (kVectors > 1) {
    block_of<kWidth, kVectors - 1>(vectors, edges, column, store);
  }
}

// All columns by vectors of kWidth <= width elements; the last vector overlaps the one before where width is no
// multiple of kWidth, and computes the shared columns to the same bits.
template <int kWidth, typename T, typename Index, typename Store>
inline void columns(const Edges<T, Index>& edges, const Store& store) {
  const int64_t width = edges.args.width;
  const int64_t whole = width / kWidth;
  int64_t done = 0;
  while (done < whole) {
    const int vectors = static_cast<int>(whole - done < kMaxVectors ? whole - done : kMaxVectors);
    block_of<kWidth, kMaxVectors>(vectors, edges, done * kWidth, store);
    done += vectors;
  }
  if (width % kWidth != 0) block<kWidth, 1>(edges, width - kWidth, store);
}

template <typename T, typename Index, typename Store>
inline void all_columns(const Edges<T, Index>& edges, const Store& store) {
  constexpr int kWidest = kVectorBytes / static_cast<int>(sizeof(T));
  const int64_t width = edges.args.width;
  if (width >= kWidest) return columns<kWidest>(edges, store);
  if constexpr (kWidest > 8) {
    if (width >= 8) return columns<8>(edges, store);
  }
  if constexpr (kWidest > 4) {
    if (width >= 4) return columns<4>(edges, store);
  }
  if constexpr (kWidest > 2) {
    if (width >= 2) return columns<2>(edges, store);
  }
  columns<1>(edges, store);
}

template <typename T>
struct StoreRow {
  const T* base;
  T* y;
  T scale;
  template <typename Vector>
  inline void operator()(int64_t column, typename Vector::type sum) const {
    if (base != nullptr) sum = scale * (Vector::load(base + column) + sum);
    Vector::store(y + column, sum);
  }
};

template <typename T>
struct StorePartial {
  T* out;
  template <typename Vector>
  inline void operator()(int64_t column, typename Vector::type sum) const {
    Vector::store(out + column, sum);
  }
};

template <typename T, typename Index>
void rows(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end) {
  const int64_t last = args.rowptr[end];
  for (int64_t i = begin; i < end; ++i) {
    const T* base = args.base == nullptr ? nullptr : args.base + i * args.base_stride;
    all_columns(Edges<T, Index>{args, args.rowptr[i], args.rowptr[i + 1], last},
                StoreRow<T>{base, args.y + i * args.width, args.scale});
  }
}

template <typename T, typename Index>
void partial(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, T* out) {
  all_columns(Edges<T, Index>{args, begin, end, end}, StorePartial<T>{out});
}

}  // namespace

const SpmmTable& spmm_table() {
  static constexpr SpmmTable kTable = {
      {rows<float, int32_t>, partial<float, int32_t>},
      {rows<float, int64_t>, partial<float, int64_t>},
      {rows<double, int32_t>, partial<double, int32_t>},
      {rows<double, int64_t>, partial<double, int64_t>},
  };
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
