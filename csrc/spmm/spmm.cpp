#include "spmm/spmm.h"

#include <atomic>

#include "spmm/part.h"
#include "spmm/row_set.h"

namespace crane {

namespace {

void check_edges(const Tensor& rowptr, const Tensor& col) {
  check_vector(rowptr, ScalarType::Long, "rowptr");
  check_vector(col, col.scalar_type() == ScalarType::Long ? ScalarType::Long : ScalarType::Int, "col");
  STD_TORCH_CHECK(rowptr.size(0) >= 1, "rowptr: expected at least one entry");
  const int64_t* pointers = rowptr.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(pointers[0] == 0 && pointers[rowptr.size(0) - 1] == col.size(0),
                  "rowptr and col: expected the same number of edges");
}

// Counting sort by column. Chunks of rows are counted apart and then placed apart; the result is that of one chunk.
template <typename Col, typename Row, typename Edge>
void sort_by_column(const int64_t* rowptr, int64_t n_rows, const Col* col, int64_t n_cols, int64_t* rowptr_t,
                    Row* col_t, Edge* order) {
  const int64_t n_edges = rowptr[n_rows];
  const int64_t n_chunks = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), n_edges / 65536));
  std::vector<int64_t> bound(n_chunks + 1, n_rows);
  for (int64_t c = 0; c < n_chunks; ++c) {
    bound[c] = std::lower_bound(rowptr, rowptr + n_rows, n_edges / n_chunks * c) - rowptr;
  }
  bound[0] = 0;
  std::vector<std::vector<Edge>> next(n_chunks, std::vector<Edge>(n_cols));
  parallel_tasks(n_chunks, [&](int64_t c) {
    for (int64_t e = rowptr[bound[c]]; e < rowptr[bound[c + 1]]; ++e) ++next[c][col[e]];
  });
  int64_t total = 0;
  for (int64_t j = 0; j < n_cols; ++j) {
    rowptr_t[j] = total;
    for (int64_t c = 0; c < n_chunks; ++c) {
      const Edge count = next[c][j];
      next[c][j] = static_cast<Edge>(total);
      total += count;
    }
  }
  rowptr_t[n_cols] = total;
  parallel_tasks(n_chunks, [&](int64_t c) {
    for (int64_t i = bound[c]; i < bound[c + 1]; ++i) {
      for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
        const Edge at = next[c][col[e]]++;
        col_t[at] = static_cast<Row>(i);
        order[at] = static_cast<Edge>(e);
      }
    }
  });
}

// value[order]
Tensor reordered(const Csr& a, const Tensor& order) {
  Tensor result = torch::stable::new_empty(a.value, {a.value.size(0)});
  STD_TORCH_CHECK(order.numel() == a.value.size(0), "order: expected an entry for each edge");
  std::atomic<bool> inside{true};
  a.visit(torch::stable::reshape(a.value, {-1, 1}), [&](const auto&, auto args) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(args.value)>>;
    T* out = static_cast<T*>(result.mutable_data_ptr());
    visit_integers(order, [&](const auto* from) {
      constexpr int64_t kChunk = 1 << 14;
      const int64_t n = a.value.size(0);
      parallel_tasks((n + kChunk - 1) / kChunk, [&](int64_t c) {
        for (int64_t e = c * kChunk; e < std::min(n, (c + 1) * kChunk); ++e) {
          const bool good = from[e] >= 0 && from[e] < n;
          out[e] = args.value[good ? from[e] : 0];
          if (!good) inside = false;
        }
      });
    });
  });
  STD_TORCH_CHECK(inside, "order: expected edges of the graph");
  return result;
}

}  // namespace

Schedule::Schedule(const int64_t* rowptr, int64_t n_rows) {
  // Row i covers the weights [rowptr[i] + i, rowptr[i + 1] + i + 1): its edges, and one for itself. A task owns the
  // rows that begin within its kTaskSize weights; a hub is longer than that, so it covers some task's first weight.
  const auto weight = [rowptr](int64_t row) { return rowptr[row] + row; };
  const int64_t n_tasks = (weight(n_rows) + kTaskSize - 1) / kTaskSize;
  int64_t begin = 0;
  for (int64_t task = 0; task < n_tasks; ++task) {
    const int64_t limit = (task + 1) * kTaskSize;
    // The first row that begins at or beyond the limit; it is near, so the search goes from here in growing steps.
    int64_t low = begin, high = begin + 1;
    for (int64_t step = 1; high < n_rows && weight(high) < limit; step *= 2) {
      low = high + 1;
      high += step;
    }
    high = std::min(high, n_rows);
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (weight(middle) < limit) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == begin) continue;
    const int64_t last = low - 1;
    const bool hub = rowptr[low] - rowptr[last] > kTaskSize;
    const int64_t end = hub ? last : low;
    if (begin < end) {
      row_begin.push_back(begin);
      row_end.push_back(end);
    }
    if (hub) {
      const int64_t first = static_cast<int64_t>(pieces.size());
      for (int64_t e = rowptr[last]; e < rowptr[low]; e += kTaskSize) {
        pieces.push_back({last, e, std::min(e + kTaskSize, rowptr[low])});
      }
      hubs.push_back({last, first, static_cast<int64_t>(pieces.size())});
    }
    begin = low;
  }
}

Csr::Csr(const Tensor& rowptr_in, const Tensor& col_in, const Tensor& value_in, const Tensor& like)
    : rowptr(rowptr_in), col(col_in), value(value_in) {
  check_edges(rowptr, col);
  wide = col.scalar_type() == ScalarType::Long;
  check_vector(value, like.scalar_type(), "value");
  STD_TORCH_CHECK(col.size(0) == value.size(0), "col and value: expected the same number of edges");
  n_rows = rowptr.size(0) - 1;
}

Tensor dense_matrix(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2, name, ": expected a CPU matrix");
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  name, ": expected float32, float64, bfloat16 or float16");
  return dense_rows(x);
}

std::tuple<Tensor, Tensor, Tensor> transpose(const Tensor& rowptr, const Tensor& col, int64_t n_cols) {
  check_edges(rowptr, col);
  const int64_t n_rows = rowptr.size(0) - 1, n_edges = col.size(0);
  Tensor rowptr_t = torch::stable::new_empty(rowptr, {n_cols + 1});
  Tensor col_t = torch::stable::new_empty(rowptr, {n_edges}, index_type(n_rows));
  Tensor order = torch::stable::new_empty(rowptr, {n_edges}, index_type(n_edges));
  visit_integers(col, [&](const auto* columns) {
    visit_writable(col_t, [&](auto* rows) {
      visit_writable(order, [&](auto* edges) {
        sort_by_column(rowptr.const_data_ptr<int64_t>(), n_rows, columns, n_cols, rowptr_t.mutable_data_ptr<int64_t>(),
                       rows, edges);
      });
    });
  });
  return {rowptr_t, col_t, order};
}

Csr transpose_of(const Csr& a, const Transpose& given, int64_t n_cols) {
  if (given.rowptr && given.col && given.value) return Csr(*given.rowptr, *given.col, *given.value, a.value);
  if (given.rowptr && given.col && given.order) {
    return Csr(*given.rowptr, *given.col, reordered(a, *given.order), a.value);
  }
  const auto [rowptr, col, order] = transpose(a.rowptr, a.col, n_cols);
  return Csr(rowptr, col, reordered(a, order), a.value);
}

Tensor spmm(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional&, const Optional&,
            const Optional&, const Optional&, const Tensor& x_in, const Optional& rows, bool mean) {
  const Tensor x = dense_matrix(x_in, "x");
  const Csr a(rowptr, col, value, x);
  const std::vector<int64_t> list = rows ? row_list(*rows, a.n_rows) : std::vector<int64_t>();
  const int64_t n_out = rows ? static_cast<int64_t>(list.size()) : a.n_rows;
  Tensor y = new_matrix(x, n_out, x.size(1));
  if (y.numel() == 0) return y;
  a.visit(x, [&](const auto& functions, auto args) {
    args.y = static_cast<decltype(args.y)>(y.mutable_data_ptr());
    args.n_rows = n_out;
    args.mean = mean;
    spmm_run(functions, args, {rows ? list.data() : nullptr, n_out});
  });
  return y;
}

Tensor spmm_t(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
              const Optional& col_t, const Optional& value_t, const Optional& order, const Tensor& grad_in,
              const Optional& rows, int64_t n_cols) {
  const Tensor grad = dense_matrix(grad_in, "grad");
  const Csr a(rowptr, col, value, grad);
  if (n_cols * grad.size(1) == 0) return new_matrix(grad, n_cols, grad.size(1));
  const Csr t = transpose_of(a, {rowptr_t, col_t, value_t, order}, n_cols);
  STD_TORCH_CHECK(t.n_rows == n_cols, "rowptr_t: expected an entry for each of n_cols, and one more");
  if (!rows) {
    STD_TORCH_CHECK(grad.size(0) == a.n_rows, "grad: expected a row for each row of the graph");
    Tensor y = new_matrix(grad, n_cols, grad.size(1));
    t.visit(grad, [&](const auto& functions, auto args) {
      args.y = static_cast<decltype(args.y)>(y.mutable_data_ptr());
      spmm_run(functions, args, {nullptr, n_cols});
    });
    return y;
  }
  const std::vector<int64_t> list = row_list(*rows, a.n_rows);
  STD_TORCH_CHECK(grad.size(0) == static_cast<int64_t>(list.size()), "grad: expected a row for each of rows");
  Tensor y = new_matrix(grad, n_cols, grad.size(1));
  const Mask wanted = mask_of(list, a.n_rows);
  Mask reached(n_cols);
  t.visit(grad, [&](const auto& functions, auto args) {
    using Index = std::remove_const_t<std::remove_pointer_t<decltype(args.col)>>;
    const RowSet<Index> set(wanted);
    visit_integers(a.col, [&](const auto* columns) { mark_columns(a.pointers(), columns, set.rows, reached); });
    const RowSet<Index> out(reached);
    const Tensor sums = sum_repeats(functions, set, list, grad);
    args.x = static_cast<decltype(args.x)>(sums.const_data_ptr());
    args.x_stride = args.width;
    args.y = static_cast<decltype(args.y)>(y.mutable_data_ptr());
    args.y_rows = out.rows.data();
    args.n_rows = out.size();
    spmm_run(functions, args, {out.rows.data(), out.size(), set.bits.data(), set.position.data()});
    clear_other_rows(reached, args.y, args.width * sizeof(*args.y));
  });
  return y;
}

std::tuple<Tensor, Tensor> spmm_max(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Tensor& x_in,
                                    const Optional& rows) {
  const Tensor x = dense_matrix(x_in, "x");
  const Csr a(rowptr, col, value, x);
  const std::vector<int64_t> list = rows ? row_list(*rows, a.n_rows) : std::vector<int64_t>();
  const int64_t n_out = rows ? static_cast<int64_t>(list.size()) : a.n_rows;
  Tensor y = new_matrix(x, n_out, x.size(1));
  Tensor argmax = torch::stable::new_empty(x, {n_out, x.size(1)}, ScalarType::Long);
  prefer_large_pages(argmax, argmax.numel() * bytes_per_element(argmax));
  if (y.numel() == 0) return {y, argmax};
  a.visit(x, [&](const auto& functions, auto args) {
    using Index = std::remove_const_t<std::remove_pointer_t<decltype(args.col)>>;
    using Sum = decltype(args.scale);
    args.y = static_cast<decltype(args.y)>(y.mutable_data_ptr());
    args.argmax = argmax.mutable_data_ptr<int64_t>();
    const Part<Index> part{rows ? list.data() : nullptr, n_out};
    const std::vector<int64_t> before = rows ? edges_before(args.rowptr, part) : std::vector<int64_t>();
    const int64_t* ends = rows ? before.data() : args.rowptr;
    const auto shift = [&](int64_t k) { return args.rowptr[part.row(k)] - ends[k]; };
    const Schedule schedule(ends, n_out);
    std::vector<Sum> best(schedule.pieces.size() * args.width);
    std::vector<int64_t> winner(best.size());
    schedule.for_tasks(
        [&](int64_t p) {
          const Schedule::Piece& piece = schedule.pieces[p];
          functions.maximum(args, piece.begin + shift(piece.row), piece.end + shift(piece.row),
                            best.data() + p * args.width, winner.data() + p * args.width);
        },
        [&](int64_t begin, int64_t end) {
          std::vector<Sum> own(args.width);
          std::vector<int64_t> edge(args.width);
          for (int64_t k = begin; k < end; ++k) {
            functions.maximum(args, ends[k] + shift(k), ends[k + 1] + shift(k), own.data(), edge.data());
            functions.largest(args, k, own.data(), edge.data(), 1);
          }
        });
    for (const Schedule::Hub& hub : schedule.hubs) {
      functions.largest(args, hub.row, best.data() + hub.first_piece * args.width,
                        winner.data() + hub.first_piece * args.width, hub.end_piece - hub.first_piece);
    }
  });
  return {y, argmax};
}

Tensor sddmm(const Tensor& rowptr, const Tensor& col, const Optional&, const Optional&, const Optional&,
             const Tensor& grad_in, const Tensor& x_in, const Optional& rows) {
  const Tensor x = dense_matrix(x_in, "x");
  Tensor grad = dense_matrix(grad_in, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.size(1) == x.size(1),
                  "grad: expected the dtype and width of x");
  Tensor out = rows ? torch::stable::new_zeros(x, {col.size(0)}) : torch::stable::new_empty(x, {col.size(0)});
  const Csr a(rowptr, col, out, x);
  const std::vector<int64_t> list = rows ? row_list(*rows, a.n_rows) : std::vector<int64_t>();
  STD_TORCH_CHECK(grad.size(0) == (rows ? static_cast<int64_t>(list.size()) : a.n_rows),
                  "grad: expected a row for each row that was computed");
  a.visit(x, [&](const auto& functions, auto args) {
    using Index = std::remove_const_t<std::remove_pointer_t<decltype(args.col)>>;
    using T = std::remove_const_t<std::remove_pointer_t<decltype(args.x)>>;
    Part<Index> part{nullptr, a.n_rows};
    std::vector<int64_t> unique, before;
    if (rows) {
      const RowSet<Index> set(mask_of(list, a.n_rows));
      grad = sum_repeats(functions, set, list, grad);
      unique = set.rows;
      part = {unique.data(), set.size()};
      before = edges_before(args.rowptr, part);
    }
    const int64_t* ends = rows ? before.data() : args.rowptr;
    const SddmmArgs<T, Index> dots{args.col,     static_cast<const T*>(grad.const_data_ptr()),
                                   args.x,       static_cast<T*>(out.mutable_data_ptr()),
                                   args.width,   grad.stride(0),
                                   args.x_stride};
    const auto run = [&](int64_t k, int64_t begin, int64_t end) {
      const int64_t shift = args.rowptr[part.row(k)] - ends[k];
      functions.dots(dots, k, begin + shift, end + shift);
    };
    const Schedule schedule(ends, part.n_rows);
    schedule.for_tasks(
        [&](int64_t p) { run(schedule.pieces[p].row, schedule.pieces[p].begin, schedule.pieces[p].end); },
        [&](int64_t begin, int64_t end) {
          for (int64_t k = begin; k < end; ++k) run(k, ends[k], ends[k + 1]);
        });
  });
  return out;
}

}  // namespace crane
