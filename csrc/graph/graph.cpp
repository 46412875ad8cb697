// A stable counting sort by row, of chunks of edges apart, and then a sort of each row by itself: rows are short, so
// that this takes one pass of random writes where a counting sort by column first would take two.
#include "graph/graph.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/parallel.h"

namespace crane {

namespace {

template <typename Col, typename Edge>
struct Entry {
  Col col;
  Edge edge;
  bool operator<(const Entry& other) const { return col < other.col || (col == other.col && edge < other.edge); }
};

// Calls f(begin, end) for chunks that cover [0, n), shared by torch's threads.
template <typename F>
void for_chunks(int64_t n, int64_t chunk, const F& f) {
  parallel_tasks((n + chunk - 1) / chunk, [&](int64_t c) { f(c * chunk, std::min(n, (c + 1) * chunk)); });
}

// Writes rowptr, and the edges row by row in the order given to entries.
template <typename Col, typename Edge>
void place(const int64_t* row, const int64_t* col, int64_t n_edges, int64_t n_rows, int64_t* rowptr,
           Entry<Col, Edge>* entries) {
  const int64_t n_chunks = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), n_edges / 65536));
  const auto first = [&](int64_t c) { return n_edges * c / n_chunks; };
  std::vector<std::vector<Edge>> next(n_chunks);
  std::atomic<bool> inside{true};
  parallel_tasks(n_chunks, [&](int64_t c) {
    next[c].resize(n_rows);
    for (int64_t e = first(c); e < first(c + 1); ++e) {
      if (row[e] < 0 || row[e] >= n_rows) return inside.store(false);
      ++next[c][row[e]];
    }
  });
  STD_TORCH_CHECK(inside, "row: expected rows of the graph");
  int64_t total = 0;
  for (int64_t i = 0; i < n_rows; ++i) {
    rowptr[i] = total;
    for (int64_t c = 0; c < n_chunks; ++c) {
      const Edge count = next[c][i];
      next[c][i] = static_cast<Edge>(total);
      total += count;
    }
  }
  rowptr[n_rows] = total;
  parallel_tasks(n_chunks, [&](int64_t c) {
    for (int64_t e = first(c); e < first(c + 1); ++e) {
      entries[next[c][row[e]]++] = {static_cast<Col>(col[e]), static_cast<Edge>(e)};
    }
  });
}

// Sorts each row; returns how many entries have the column of the one before.
template <typename Col, typename Edge>
int64_t sort_rows(const int64_t* rowptr, int64_t n_rows, Entry<Col, Edge>* entries, Col* col, Edge* order) {
  std::atomic<int64_t> repeats{0};
  for_chunks(n_rows, 512, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (!std::is_sorted(entries + rowptr[i], entries + rowptr[i + 1])) {
        std::sort(entries + rowptr[i], entries + rowptr[i + 1]);
      }
      for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
        col[e] = entries[e].col;
        order[e] = entries[e].edge;
        found += e > rowptr[i] && entries[e].col == entries[e - 1].col;
      }
    }
    repeats += found;
  });
  return repeats;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> sort_edges(const Tensor& row, const Tensor& col, int64_t n_rows,
                                                      int64_t n_cols) {
  check_vector(row, ScalarType::Long, "row");
  check_vector(col, ScalarType::Long, "col");
  const int64_t n_edges = row.size(0);
  STD_TORCH_CHECK(col.size(0) == n_edges, "row and col: expected the same number of edges");
  Tensor rowptr = torch::stable::new_empty(row, {n_rows + 1});
  Tensor sorted = torch::stable::new_empty(row, {n_edges}, index_type(n_cols));
  Tensor order = torch::stable::new_empty(row, {n_edges}, index_type(n_edges));
  Tensor repeats = torch::stable::new_empty(row, {1});
  visit_writable(sorted, [&](auto* columns) {
    visit_writable(order, [&](auto* edges) {
      using Item = Entry<std::remove_pointer_t<decltype(columns)>, std::remove_pointer_t<decltype(edges)>>;
      const std::unique_ptr<Item[]> entries(new Item[n_edges]);
      place(row.const_data_ptr<int64_t>(), col.const_data_ptr<int64_t>(), n_edges, n_rows,
            rowptr.mutable_data_ptr<int64_t>(), entries.get());
      repeats.mutable_data_ptr<int64_t>()[0] =
          sort_rows(rowptr.const_data_ptr<int64_t>(), n_rows, entries.get(), columns, edges);
    });
  });
  return {rowptr, sorted, order, repeats};
}

}  // namespace crane
