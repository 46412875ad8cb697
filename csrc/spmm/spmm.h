// Sparse times dense on the CPU, for operators built on it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "spmm/kernel.h"

namespace crane {

// Divides rows among tasks of about the same number of edges and rows. A task never depends on the number of threads.
// A row of more than kTaskSize edges (a hub) is cut into pieces that are summed apart and then added up in order.
class Schedule {
 public:
  struct Piece {
    int64_t row;
    int64_t begin, end;  // edges
  };
  struct Hub {
    int64_t row, first_piece, end_piece;
  };

  Schedule(const int64_t* rowptr, int64_t n_rows);

  static constexpr int64_t kTaskSize = 2048;

  // Row tasks: task t has rows [row_begin[t], row_end[t]), at most kTaskSize of them with 2 * kTaskSize edges at most.
  std::vector<int64_t> row_begin, row_end;
  std::vector<Piece> pieces;
  std::vector<Hub> hubs;

  // Calls f(piece) or g(begin, end) for each piece and row task, shared by torch's threads.
  template <typename F, typename G>
  void for_tasks(const F& f, const G& g) const {
    const int64_t n_pieces = static_cast<int64_t>(pieces.size());
    parallel_tasks(n_pieces + static_cast<int64_t>(row_begin.size()), [&](int64_t task) {
      if (task < n_pieces) {
        f(task);
      } else {
        g(row_begin[task - n_pieces], row_end[task - n_pieces]);
      }
    });
  }
};

// The part of A that a product takes.
template <typename Index>
struct Part {
  const int64_t* rows = nullptr;  // null: all
  int64_t n_rows = 0;
  const uint64_t* bits = nullptr;   // null: all columns; else a bit for each, whether its edges are taken
  const Index* position = nullptr;  // null: x has a row for each column; else which of its rows stands for it

  bool whole() const { return rows == nullptr && bits == nullptr; }
  int64_t row(int64_t k) const { return rows == nullptr ? k : rows[k]; }
};

// The edges of a task, side by side, so that the kernel can look ahead beyond a row's end.
template <typename T, typename Index>
struct TaskEdges {
  std::array<int64_t, Schedule::kTaskSize + 1> rowptr;
  std::array<Index, 2 * Schedule::kTaskSize> col;
  std::array<T, 2 * Schedule::kTaskSize> value;
  int64_t size = 0;

  void add(const SpmmArgs<T, Index>& a, const Part<Index>& part, int64_t begin, int64_t end) {
    if (part.bits == nullptr) {
      std::copy(a.col + begin, a.col + end, col.begin() + size);
      std::copy(a.value + begin, a.value + end, value.begin() + size);
      size += end - begin;
      return;
    }
    const int64_t first = size;
    for (int64_t e = begin; e < end; ++e) {  // without a branch, which would be guessed wrong too often
      const uint64_t column = a.col[e];
      col[size] = static_cast<Index>(column);
      value[size] = a.value[e];
      size += part.bits[column / 64] >> (column % 64) & 1;
    }
    if (part.position == nullptr) return;
    for (int64_t k = first; k < size; ++k) col[k] = part.position[col[k]];
  }

  SpmmArgs<T, Index> args_of(SpmmArgs<T, Index> args) const {
    args.rowptr = rowptr.data();
    args.col = col.data();
    args.value = value.data();
    return args;
  }
};

// rowptr as if the rows of the part were all there are.
template <typename Index>
std::vector<int64_t> edges_before(const int64_t* rowptr, const Part<Index>& part) {
  std::vector<int64_t> before(part.n_rows + 1);
  for (int64_t k = 0; k < part.n_rows; ++k) {
    before[k + 1] = before[k] + rowptr[part.row(k) + 1] - rowptr[part.row(k)];
  }
  return before;
}

constexpr int64_t kRowsAhead = 8;  // whose edges are prefetched while those of a part are put side by side

// Runs the product over the rows of a part; args.n_rows is that of the part, args.rowptr that of all of A.
template <typename T, typename Index>
void spmm_run(const SpmmFunctions<T, Index>& functions, const SpmmArgs<T, Index>& args, const Part<Index>& part) {
  const std::vector<int64_t> before = part.rows == nullptr ? std::vector<int64_t>() : edges_before(args.rowptr, part);
  const int64_t* rowptr = part.rows == nullptr ? args.rowptr : before.data();
  const auto first_edge = [&](int64_t k) { return args.rowptr[part.row(k)]; };
  const Schedule schedule(rowptr, part.n_rows);
  std::vector<Accumulator<T>> partial(schedule.pieces.size() * args.width);
  const auto sum_piece = [&](int64_t p) {
    const Schedule::Piece& piece = schedule.pieces[p];
    const int64_t begin = first_edge(piece.row) + piece.begin - rowptr[piece.row],
                  end = begin + piece.end - piece.begin;
    Accumulator<T>* out = partial.data() + p * args.width;
    if (part.bits == nullptr) return functions.partial(args, begin, end, out);
    TaskEdges<T, Index> edges;
    edges.add(args, part, begin, end);
    functions.partial(edges.args_of(args), 0, edges.size, out);
  };
  const auto sum_rows = [&](int64_t begin, int64_t end) {
    if (part.whole()) return functions.rows(args, begin, end);
    TaskEdges<T, Index> edges;
    edges.rowptr[0] = 0;
    for (int64_t k = begin; k < end; ++k) {
      if (k + kRowsAhead < part.n_rows) {
        __builtin_prefetch(args.col + first_edge(k + kRowsAhead));
        __builtin_prefetch(args.value + first_edge(k + kRowsAhead));
      }
      edges.add(args, part, first_edge(k), first_edge(k) + rowptr[k + 1] - rowptr[k]);
      edges.rowptr[k - begin + 1] = edges.size;
    }
    SpmmArgs<T, Index> local = edges.args_of(args);
    if (args.base_rows != nullptr) {
      local.base_rows += begin;
    } else if (args.base != nullptr) {
      local.base += begin * args.base_stride;
    }
    if (args.y_rows != nullptr) {
      local.y_rows += begin;
    } else {
      local.y += begin * args.width;
    }
    functions.rows(local, 0, end - begin);
  };
  schedule.for_tasks(sum_piece, sum_rows);
  for (const Schedule::Hub& hub : schedule.hubs) {
    functions.finish(args, hub.row, rowptr[hub.row + 1] - rowptr[hub.row],
                     partial.data() + hub.first_piece * args.width, hub.end_piece - hub.first_piece);
  }
}

// The arrays of a graph after their checks against the dtype of a dense matrix.
struct Csr {
  Csr(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Tensor& like);

  // Calls f(functions, args) with args of the right types: the graph, and x and its width; scale is 1.
  template <typename F>
  void visit(const Tensor& x, const F& f) const {
    const SpmmTable& table = spmm_table();
    switch (x.scalar_type()) {
      case ScalarType::Float:
        return wide ? f(table.float_int64, args<float, int64_t>(x)) : f(table.float_int32, args<float, int32_t>(x));
      case ScalarType::Double:
        return wide ? f(table.double_int64, args<double, int64_t>(x)) : f(table.double_int32, args<double, int32_t>(x));
      case ScalarType::BFloat16:
        return wide ? f(table.bfloat16_int64, args<BFloat16, int64_t>(x))
                    : f(table.bfloat16_int32, args<BFloat16, int32_t>(x));
      default:
        return wide ? f(table.half_int64, args<Half, int64_t>(x)) : f(table.half_int32, args<Half, int32_t>(x));
    }
  }

  template <typename T, typename Index>
  SpmmArgs<T, Index> args(const Tensor& x) const {
    SpmmArgs<T, Index> a{};
    a.rowptr = pointers();
    a.col = col.const_data_ptr<Index>();
    a.value = static_cast<const T*>(value.const_data_ptr());
    a.x = static_cast<const T*>(x.const_data_ptr());
    a.n_rows = n_rows;
    a.width = x.size(1);
    a.x_stride = x.stride(0);
    a.scale = 1;
    return a;
  }

  const int64_t* pointers() const { return rowptr.const_data_ptr<int64_t>(); }

  Tensor rowptr, col, value;
  int64_t n_rows;
  bool wide;  // col is int64
};

// Those of the optional arrays that describe the transpose, see registration/ops.cpp.
struct Transpose {
  const std::optional<Tensor>&rowptr, &col, &value, &order;
};

// A^T, by its own arrays if they are given, else made here.
Csr transpose_of(const Csr& a, const Transpose& given, int64_t n_cols);

// A CPU matrix of a supported dtype whose rows are dense.
Tensor dense_matrix(const Tensor& x, const char* name);

using Optional = std::optional<Tensor>;

Tensor spmm(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
            const Optional& col_t, const Optional& value_t, const Optional& order, const Tensor& x,
            const Optional& rows, bool mean);

Tensor spmm_t(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
              const Optional& col_t, const Optional& value_t, const Optional& order, const Tensor& grad,
              const Optional& rows, int64_t n_cols);

std::tuple<Tensor, Tensor> spmm_max(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Tensor& x,
                                    const Optional& rows);

Tensor sddmm(const Tensor& rowptr, const Tensor& col, const Optional& rowptr_t, const Optional& col_t,
             const Optional& order, const Tensor& grad, const Tensor& x, const Optional& rows);

std::tuple<Tensor, Tensor, Tensor> transpose(const Tensor& rowptr, const Tensor& col, int64_t n_cols);

}  // namespace crane
