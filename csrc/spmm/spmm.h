// Sparse times dense on the CPU, for operators built on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/parallel.h"
#include "common/tensors.h"
#include "spmm/kernel.h"

namespace crane {

// Divides rows among tasks of about the same number of edges and rows. A task never depends on the number of threads.
// A row of more than kTaskSize edges (a hub) is cut into pieces that are summed apart and then added up in order.
class Schedule {
 public:
  struct Piece {
    int64_t begin, end;  // edges
  };
  struct Hub {
    int64_t row, first_piece, end_piece;
  };

  Schedule(const int64_t* rowptr, int64_t n_rows);

  static constexpr int64_t kTaskSize = 2048;

  // Row tasks: task t has rows [row_begin[t], row_end[t]).
  std::vector<int64_t> row_begin, row_end;
  std::vector<Piece> pieces;
  std::vector<Hub> hubs;
};

template <typename T, typename Index>
void spmm_run(const SpmmFunctions<T, Index>& functions, const SpmmArgs<T, Index>& args, const Schedule& schedule) {
  const int64_t n_pieces = static_cast<int64_t>(schedule.pieces.size());
  std::vector<T> partial(n_pieces * args.width);
  parallel_tasks(n_pieces + static_cast<int64_t>(schedule.row_begin.size()), [&](int64_t task) {
    if (task < n_pieces) {
      const Schedule::Piece& piece = schedule.pieces[task];
      functions.partial(args, piece.begin, piece.end, partial.data() + task * args.width);
    } else {
      functions.rows(args, schedule.row_begin[task - n_pieces], schedule.row_end[task - n_pieces]);
    }
  });
  for (const Schedule::Hub& hub : schedule.hubs) {
    const T* base = args.base == nullptr ? nullptr : args.base + hub.row * args.base_stride;
    T* y = args.y + hub.row * args.width;
    for (int64_t j = 0; j < args.width; ++j) {
      T sum = 0;
      for (int64_t p = hub.first_piece; p < hub.end_piece; ++p) sum += partial[p * args.width + j];
      y[j] = base == nullptr ? sum : args.scale * (base[j] + sum);
    }
  }
}

// The arrays of a graph after their checks, ready for a kernel.
struct SpmmInputs {
  SpmmInputs(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Tensor& x);

  // Calls f(functions, args): args of the right types with everything set but base, y and scale.
  template <typename F>
  void visit(const F& f) const {
    const SpmmTable& table = spmm_table();
    if (x.scalar_type() == ScalarType::Float) {
      wide ? f(table.float_int64, args<float, int64_t>()) : f(table.float_int32, args<float, int32_t>());
    } else {
      wide ? f(table.double_int64, args<double, int64_t>()) : f(table.double_int32, args<double, int32_t>());
    }
  }

  template <typename T, typename Index>
  SpmmArgs<T, Index> args() const {
    SpmmArgs<T, Index> a{};
    a.rowptr = rowptr.const_data_ptr<int64_t>();
    a.col = col.const_data_ptr<Index>();
    a.value = value.const_data_ptr<T>();
    a.x = x.const_data_ptr<T>();
    a.n_rows = n_rows;
    a.width = x.size(1);
    a.x_stride = x.stride(0);
    a.scale = 1;
    return a;
  }

  Tensor rowptr, col, value, x;
  int64_t n_rows;
  bool wide;  // col is int64
};

Tensor spmm(const Tensor& rowptr, const Tensor& col, const Tensor& value, const std::optional<Tensor>& rowptr_t,
            const std::optional<Tensor>& col_t, const std::optional<Tensor>& value_t, const Tensor& x);

}  // namespace crane
