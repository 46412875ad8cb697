// A row of y is accumulated in registers, a block of columns at a time, while the rows of x that its edges name stream
// through; the row that a later edge names is prefetched, as their order is known and the processor cannot guess it.
// Compiled once for each instruction set.
#include "spmm/kernel.h"

#include <type_traits>

#include "common/half.h"
#include "common/vector.h"

namespace crane {
namespace CRANE_ISA {
namespace {

// Registers of accumulators a block holds: at most half of what the instruction set has.
constexpr int kMaxVectors = 8;

constexpr int kLine = 64;  // bytes of a line of the caches

// How many edges ahead so many bytes of their rows of x are prefetched. Of more than two lines, 12 to 24 edges are
// alike; of two or one, that is too little on its way to keep the memory busy: on Zen 5, at 10^7 edges, 64 edges make
// bfloat16 at 64 columns and float32 at 16 to 32 1.6 times as fast as 16 edges do, and change nothing for tables that
// stay in cache. Where prefetching ends with the row, most rows would have no edge so far ahead.
constexpr int64_t kAhead = 16, kFarAhead = 64;
constexpr int64_t ahead(int bytes) { return bytes > 2 * kLine ? kAhead : kFarAhead; }

// Every how many bytes. Processors with AVX-512 fetch lines of 64 bytes in pairs, and asking for each takes the turn of
// a load: for long rows pairs are up to 7 % faster than lines. Short ones often lie across pairs, as large tensors
// begin 64 bytes past a page: there lines are 1.4 times as fast. With AVX2, on Zen 3, lines are 5 to 15 % faster for
// long rows too.
constexpr int asked(int bytes) { return kVectorBytes == 64 && bytes > 2 * kLine ? 2 * kLine : kLine; }

// From how many bytes of y on its rows pass the caches by: reading lines only to overwrite them, and giving them the
// place of rows of x, costs more than the next reader of y saves. Only whole lines are written without reading them.
// Measured on Amazon Baby's graph, with AVX2 on Zen 3, spmm with its gradient takes 4 to 8 % less, and propagate 12 to
// 22 %, though its layers read what the one before wrote. With AVX-512 on Zen 5 that is 9 to 16 % of spmm; propagate
// takes 2 to 6 % more if layers in between pass the caches by, and 5 % less if only the last one does.
constexpr int64_t kStreamedBytes = 4 << 20;
template <typename Args>
bool streamed(const Args& args, int64_t row_bytes) {
  return args.n_rows * row_bytes >= kStreamedBytes && (kVectorBytes < 64 || !args.read_next);
}

template <typename T>
constexpr int kWidest = kVectorBytes / static_cast<int>(sizeof(Accumulator<T>));

// A range of edges, of one row for the most part, and where prefetching ends.
template <typename T, typename Index>
struct Edges {
  const Index* col;
  const T* value;
  const T* x;
  int64_t x_stride, width;
  int64_t begin, end;
  int64_t last;

  inline const T* row(int64_t e) const { return x + static_cast<int64_t>(col[e]) * x_stride; }

  template <int kElements, int64_t kEdges = ahead(kElements * static_cast<int>(sizeof(T)))>
  inline void prefetch(int64_t e, int64_t column) const {
    constexpr int kBytes = kElements * static_cast<int>(sizeof(T));
    if (e + kEdges >= last) return;
    const char* next = reinterpret_cast<const char*>(row(e + kEdges) + column);
    for (int k = 0; k < kBytes; k += asked(kBytes)) __builtin_prefetch(next + k);
  }
};

template <typename T, typename Index>
Edges<T, Index> edges_of(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, int64_t last) {
  return {args.col, args.value, args.x, args.x_stride, args.width, begin, end, last};
}

// Columns [column, column + kVectors * kWidth) of the sum over edges.
template <int kWidth, int kVectors, typename T, typename Index, typename Store>
inline __attribute__((always_inline)) void sum_block(const Edges<T, Index>& edges, int64_t column, const Store& store) {
  using Lane = Lanes<T, kWidth>;
  typename Lane::type sum[kVectors] = {};
  for (int64_t e = edges.begin; e < edges.end; ++e) {
    edges.template prefetch<kVectors * kWidth>(e, column);
    const Accumulator<T> value = Lanes<T, 1>::load(edges.value + e);
    const T* row = edges.row(e) + column;
    for (int k = 0; k < kVectors; ++k) sum[k] += value * Lane::load(row + k * kWidth);
  }
  for (int k = 0; k < kVectors; ++k) store.template operator()<kWidth>(column + k * kWidth, sum[k]);
}

// Calls f.operator()<kWidth, n>(column) for blocks of n <= kMaxVectors vectors of kWidth elements that cover all
// columns, which are kWidth at least; the last vector overlaps the one before where width is no multiple of kWidth,
// and what is computed for the shared columns must be the same bits.
template <int kWidth, int kVectors, typename F>
inline __attribute__((always_inline)) void block_of(int vectors, int64_t column, const F& f) {
  if (vectors == kVectors) {
    f.template operator()<kWidth, kVectors>(column);
  } else if constexpr (kVectors > 1) {
    block_of<kWidth, kVectors - 1>(vectors, column, f);
  }
}

template <int kWidth, typename F>
inline void columns(int64_t width, const F& f) {
  const int64_t whole = width / kWidth;
  int64_t done = 0;
  while (done < whole) {
    const int vectors = static_cast<int>(whole - done < kMaxVectors ? whole - done : kMaxVectors);
    block_of<kWidth, kMaxVectors>(vectors, done * kWidth, f);
    done += vectors;
  }
  if (width % kWidth != 0) f.template operator()<kWidth, 1>(width - kWidth);
}

template <typename T, typename F>
inline void all_columns(int64_t width, const F& f) {
  constexpr int kWide = kWidest<T>;
  if (width >= kWide) return columns<kWide>(width, f);
  if constexpr (kWide > 8) {
    if (width >= 8) return columns<8>(width, f);
  }
  if constexpr (kWide > 4) {
    if (width >= 4) return columns<4>(width, f);
  }
  if constexpr (kWide > 2) {
    if (width >= 2) return columns<2>(width, f);
  }
  columns<1>(width, f);
}

template <typename T, bool kStream = false>
struct StoreRow {
  const T* base;
  T* y;
  Accumulator<T> scale;

  template <typename Index>
  StoreRow(const SpmmArgs<T, Index>& args, int64_t k, int64_t n_edges)
      : base(nullptr), y(args.y + (args.y_rows == nullptr ? k : args.y_rows[k]) * args.width), scale(args.scale) {
    const int64_t base_row = args.base_rows == nullptr ? k : args.base_rows[k];
    if (args.base != nullptr && base_row >= 0) base = args.base + base_row * args.base_stride;
    if (args.mean && n_edges > 1) scale /= static_cast<Accumulator<T>>(n_edges);
  }

  template <int kWidth>
  inline void operator()(int64_t column, typename Lanes<T, kWidth>::type sum) const {
    if (base != nullptr) sum += Lanes<T, kWidth>::load(base + column);
    if constexpr (kStream) {
      stream(y + column, scale * sum);
    } else {
      Lanes<T, kWidth>::store(y + column, scale * sum);
    }
  }
};

template <typename A>
struct StorePartial {
  A* out;
  template <int kWidth>
  inline void operator()(int64_t column, typename VectorOf<A, kWidth>::type sum) const {
    VectorOf<A, kWidth>::store(out + column, sum);
  }
};

template <typename T, typename Index, typename Store>
struct SumColumns {
  const Edges<T, Index>& edges;
  const Store& store;
  template <int kWidth, int kVectors>
  inline __attribute__((always_inline)) void operator()(int64_t column) const {
    sum_block<kWidth, kVectors>(edges, column, store);
  }
};

template <typename T, typename Index, bool kStream = false>
struct SumRows {
  const SpmmArgs<T, Index>& args;
  int64_t begin, end;
  template <int kWidth, int kVectors>
  inline void operator()(int64_t column) const {
    const int64_t last = args.rowptr[end];
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = args.rowptr[k], next = args.rowptr[k + 1];
      sum_block<kWidth, kVectors>(edges_of(args, first, next, last), column,
                                  StoreRow<T, kStream>(args, k, next - first));
    }
  }
};

template <typename T, typename Index>
void rows(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end) {
  constexpr int kWide = kWidest<T>;
  const int64_t vectors = args.width / kWide;
  if (args.width % kWide == 0 && vectors <= kMaxVectors) {  // one block: chosen once for all rows
    if constexpr (kStreams && sizeof(T) == sizeof(Accumulator<T>)) {
      const int64_t row_bytes = args.width * static_cast<int64_t>(sizeof(T));
      const bool whole_lines = reinterpret_cast<uintptr_t>(args.y) % kLine == 0 && row_bytes % kLine == 0;
      if (whole_lines && streamed(args, row_bytes)) {
        block_of<kWide, kMaxVectors>(static_cast<int>(vectors), 0, SumRows<T, Index, true>{args, begin, end});
        return finish_streams();
      }
    }
    return block_of<kWide, kMaxVectors>(static_cast<int>(vectors), 0, SumRows<T, Index>{args, begin, end});
  }
  const int64_t last = args.rowptr[end];
  for (int64_t k = begin; k < end; ++k) {
    const int64_t first = args.rowptr[k], next = args.rowptr[k + 1];
    const Edges<T, Index> edges = edges_of(args, first, next, last);
    const StoreRow<T> store(args, k, next - first);
    all_columns<T>(args.width, SumColumns<T, Index, StoreRow<T>>{edges, store});
  }
}

template <typename T, typename Index>
void partial(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, Accumulator<T>* out) {
  const Edges<T, Index> edges = edges_of(args, begin, end, end);
  const StorePartial<Accumulator<T>> store{out};
  all_columns<T>(args.width, SumColumns<T, Index, StorePartial<Accumulator<T>>>{edges, store});
}

template <typename T, typename Index>
void finish(const SpmmArgs<T, Index>& args, int64_t k, int64_t n_edges, const Accumulator<T>* sums, int64_t n) {
  const StoreRow<T> store(args, k, n_edges);
  for (int64_t j = 0; j < args.width; ++j) {
    Accumulator<T> sum = 0;
    for (int64_t p = 0; p < n; ++p) sum += sums[p * args.width + j];
    store.template operator()<1>(j, sum);
  }
}

// Counts edges in integers as wide as what is compared.
template <typename T>
using Count = std::conditional_t<sizeof(Accumulator<T>) == 4, int32_t, int64_t>;

template <typename T, typename Index>
struct MaxColumns {
  const Edges<T, Index>& edges;
  Accumulator<T>* best;
  int64_t* winner;
  template <int kWidth, int kVectors>
  inline __attribute__((always_inline)) void operator()(int64_t column) const {
    using Lane = Lanes<T, kWidth>;
    using Counts = typename VectorOf<Count<T>, kWidth>::type;
    typename Lane::type top[kVectors] = {};
    Counts which[kVectors];
    for (int k = 0; k < kVectors; ++k) which[k] = Counts{} - 1;
    for (int64_t e = edges.begin; e < edges.end; ++e) {
      edges.template prefetch<kVectors * kWidth, kAhead>(e, column);
      const Accumulator<T> value = Lanes<T, 1>::load(edges.value + e);
      const T* row = edges.row(e) + column;
      const Counts at = Counts{} + static_cast<Count<T>>(e - edges.begin);
      for (int k = 0; k < kVectors; ++k) {
        const typename Lane::type product = value * Lane::load(row + k * kWidth);
        const auto wins = (which[k] < 0) | (product > top[k]) | ((product != product) & (top[k] == top[k]));
        top[k] = wins ? product : top[k];
        which[k] = wins ? at : which[k];
      }
    }
    Count<T> found[kVectors * kWidth];
    for (int k = 0; k < kVectors; ++k) {
      VectorOf<Accumulator<T>, kWidth>::store(best + column + k * kWidth, top[k]);
      VectorOf<Count<T>, kWidth>::store(found + k * kWidth, which[k]);
    }
    for (int j = 0; j < kVectors * kWidth; ++j) winner[column + j] = found[j] < 0 ? -1 : edges.begin + found[j];
  }
};

template <typename T, typename Index>
void maximum(const SpmmArgs<T, Index>& args, int64_t begin, int64_t end, Accumulator<T>* best, int64_t* winner) {
  const Edges<T, Index> edges = edges_of(args, begin, end, end);
  all_columns<T>(args.width, MaxColumns<T, Index>{edges, best, winner});
}

template <typename T, typename Index>
void largest(const SpmmArgs<T, Index>& args, int64_t k, const Accumulator<T>* best, const int64_t* winner, int64_t n) {
  for (int64_t j = 0; j < args.width; ++j) {
    int64_t p = 0;
    for (int64_t next = 1; next < n; ++next) {
      const Accumulator<T> own = best[p * args.width + j], other = best[next * args.width + j];
      if (other > own || (other != other && own == own)) p = next;
    }
    Lanes<T, 1>::store(args.y + k * args.width + j, best[p * args.width + j]);
    args.argmax[k * args.width + j] = winner[p * args.width + j];
  }
}

// Dot products of row k of g with the rows of x that the edges name.
template <typename T, typename Index>
struct DotColumns {
  const SddmmArgs<T, Index>& args;
  const Edges<T, Index>& edges;
  const T* g;
  Accumulator<T>* sums;  // of the edges, from edges.begin on
  template <int kWidth, int kVectors>
  inline __attribute__((always_inline)) void operator()(int64_t column) const {
    using Lane = Lanes<T, kWidth>;
    typename Lane::type own[kVectors];
    for (int k = 0; k < kVectors; ++k) own[k] = Lane::load(g + column + k * kWidth);
    for (int64_t e = edges.begin; e < edges.end; ++e) {
      edges.template prefetch<kVectors * kWidth, kAhead>(e, column);
      const T* row = edges.row(e) + column;
      typename Lane::type dot = own[0] * Lane::load(row);
      for (int k = 1; k < kVectors; ++k) dot += own[k] * Lane::load(row + k * kWidth);
      if constexpr (kWidth == 1) {
        sums[e - edges.begin] += dot;
      } else {
        Accumulator<T> total = 0;
        for (int k = 0; k < kWidth; ++k) total += dot[k];
        sums[e - edges.begin] += total;
      }
    }
  }
};

template <typename T, typename Index>
void dots(const SddmmArgs<T, Index>& args, int64_t k, int64_t begin, int64_t end) {
  constexpr int64_t kChunk = 256;
  const T* g = args.g + k * args.g_stride;
  // Whole vectors, then what is left over: the overlap of all_columns would count columns twice.
  constexpr int kWide = kWidest<T>;
  const int64_t whole = args.width / kWide * kWide;
  for (int64_t first = begin; first < end; first += kChunk) {
    const int64_t next = first + kChunk < end ? first + kChunk : end;
    Accumulator<T> sums[kChunk] = {};
    const Edges<T, Index> edges{args.col, nullptr, args.x, args.x_stride, args.width, first, next, end};
    const DotColumns<T, Index> f{args, edges, g, sums};
    if (whole > 0) columns<kWide>(whole, f);
    for (int64_t column = whole; column < args.width; ++column) f.template operator()<1, 1>(column);
    for (int64_t e = first; e < next; ++e) Lanes<T, 1>::store(args.out + e, sums[e - first]);
  }
}

template <typename T, typename Index>
constexpr SpmmFunctions<T, Index> functions() {
  return {rows<T, Index>, partial<T, Index>, finish<T, Index>, maximum<T, Index>, largest<T, Index>, dots<T, Index>};
}

}  // namespace

const SpmmTable& spmm_table() {
  static constexpr SpmmTable kTable = {
      functions<float, int32_t>(),  functions<float, int64_t>(),    functions<double, int32_t>(),
      functions<double, int64_t>(), functions<BFloat16, int32_t>(), functions<BFloat16, int64_t>(),
      functions<Half, int32_t>(),   functions<Half, int64_t>(),
  };
  return kTable;
}

}  // namespace CRANE_ISA
}  // namespace crane
