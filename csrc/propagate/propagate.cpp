// By Horner's rule: x + A x + ... + A^L x = x + A (x + A (x + ...)). Every layer adds x as it stores a row, so that no
// sum over layers is kept.
//
// For some rows R_0 only, layer L is needed at R_0, layer L - 1 at the columns R_1 that R_0 has edges to, and so on.
// The transpose runs the other way: its first layer is zero but at R_0, the next but at R_0 and R_1. Layers on the way
// hold those rows alone, side by side, until they have most of the edges or seem to: from there on all rows cost less
// than choosing. Either way a row is summed in the same order, so that its bits are those of the product for all rows.
#include "propagate/propagate.h"

#include <cstring>

#include "spmm/part.h"

namespace crane {

namespace {

template <typename Args>
using ElementOf = std::remove_const_t<std::remove_pointer_t<decltype(Args::x)>>;
template <typename Args>
using IndexOf = std::remove_const_t<std::remove_pointer_t<decltype(Args::col)>>;

// All rows: two buffers, of which the result is one, are enough for any number of layers.
Tensor propagate_all(const Csr& a, const Tensor& x, int64_t layers) {
  Tensor result = new_matrix(x, a.n_rows, x.size(1));
  if (result.numel() == 0) return result;
  if (layers == 0) return torch::stable::copy_(result, x);
  Tensor other = layers == 1 ? result : new_matrix(result, a.n_rows, x.size(1));
  a.visit(x, [&](const auto& functions, auto args) {
    args.base = args.x;
    args.base_stride = args.x_stride;
    for (int64_t layer = 1; layer <= layers; ++layer) {
      // The last layer writes the result, the one before the other buffer, and so on backwards.
      args.y = static_cast<decltype(args.y)>(((layers - layer) % 2 == 0 ? result : other).mutable_data_ptr());
      args.scale = layer == layers ? 1 / static_cast<decltype(args.scale)>(layers + 1) : 1;
      args.read_next = layer < layers;
      spmm_run(functions, args, {nullptr, a.n_rows});
      args.x = args.y;
      args.x_stride = args.width;
    }
  });
  return result;
}

template <typename Index>
using Sets = std::vector<RowSet<Index>>;

// The share of all edges that these rows have.
double share(const Csr& a, const std::vector<int64_t>& rows) {
  const int64_t* rowptr = a.pointers();
  int64_t n_edges = 0;
  for (int64_t row : rows) n_edges += rowptr[row + 1] - rowptr[row];
  return static_cast<double>(n_edges) / static_cast<double>(std::max<int64_t>(1, a.col.size(0)));
}

// Rows with more of the edges than kFew are not worth a product of their own, which looks up each edge, beside one for
// all rows. Nor is the search for the rows that a set reaches, a third of the set's own product, where a sample says
// that they have more than kMany.
constexpr double kFew = 0.75, kMany = 0.8;

// The share of the edges whose rows a set reaches, or another has, estimated from some edges and some of each row's
// neighbours, as if all edges went both ways.
template <typename Index>
double share_reached(const Csr& a, const RowSet<Index>& set, const RowSet<Index>* other) {
  constexpr int64_t kEdges = 128, kNeighbours = 64;
  const int64_t* rowptr = a.pointers();
  const Index* col = a.col.const_data_ptr<Index>();
  const int64_t n_edges = a.col.size(0), sampled = std::min(n_edges, kEdges);
  int64_t n_reached = 0;
  for (int64_t k = 0; k < sampled; ++k) {
    const int64_t row = col[k * n_edges / sampled], end = rowptr[row + 1];
    const int64_t step = 1 + (end - rowptr[row]) / kNeighbours;
    bool reached = other != nullptr && other->has(row);
    for (int64_t e = rowptr[row]; e < end && !reached; e += step) reached = set.has(col[e]);
    n_reached += reached;
  }
  return sampled == 0 ? 0 : static_cast<double>(n_reached) / static_cast<double>(sampled);
}

// R_0 = the rows of the list, and R_1, ..., where each has the columns that the one before has edges to, and R_0 too if
// `along`: at most `most` of them, those after R_0 only if they have few of the edges.
template <typename Index>
Sets<Index> reached_rows(const Csr& a, const std::vector<int64_t>& list, int64_t most, bool along) {
  Sets<Index> sets;
  sets.emplace_back(mask_of(list, a.n_rows));
  double reached = share(a, sets[0].rows);
  while (static_cast<int64_t>(sets.size()) < most && reached <= kFew &&
         share_reached(a, sets.back(), along ? &sets[0] : nullptr) <= kMany) {
    Mask mask = along ? mask_of(list, a.n_rows) : Mask(a.n_rows);
    mark_columns(a.pointers(), a.col.const_data_ptr<Index>(), sets.back().rows, mask);
    sets.emplace_back(mask);
    reached = share(a, sets.back().rows);
  }
  if (sets.size() > 1 && reached > kFew) sets.pop_back();
  return sets;
}

// Calls f(k) for k < n, shared by torch's threads.
template <typename F>
void for_rows(int64_t n, const F& f) {
  constexpr int64_t kChunk = 256;
  parallel_tasks((n + kChunk - 1) / kChunk, [&](int64_t c) {
    for (int64_t k = c * kChunk; k < std::min(n, (c + 1) * kChunk); ++k) f(k);
  });
}

// to[k] = from[rows[k]] for rows of `bytes` bytes.
void copy_rows(const char* from, int64_t stride_bytes, const std::vector<int64_t>& rows, char* to, int64_t bytes) {
  for_rows(static_cast<int64_t>(rows.size()),
           [&](int64_t k) { std::memcpy(to + k * bytes, from + rows[k] * stride_bytes, bytes); });
}

// to[rows[k]] = from[k] for rows of `bytes` bytes.
void put_rows(const char* from, const std::vector<int64_t>& rows, char* to, int64_t bytes) {
  for_rows(static_cast<int64_t>(rows.size()),
           [&](int64_t k) { std::memcpy(to + rows[k] * bytes, from + k * bytes, bytes); });
}

// Layers one after the other, each of all rows or of a set's: y = base + A x, where x is the layer before, and the last
// divided by their number.
template <typename T, typename Index>
class Layers {
 public:
  using Set = const RowSet<Index>*;  // null: all rows

  // Rows of a set are side by side where they are less than one in so many; else each stands where it does among all
  // rows, and need not be looked up.
  static constexpr int64_t kSideBySide = 4;

  // The first is x, at the rows of `at`, side by side; `count` products follow.
  Layers(const SpmmFunctions<T, Index>& functions, const SpmmArgs<T, Index>& args, const Tensor& x, Set at,
         int64_t count)
      : functions_(functions),
        args_(args),
        x_(x),
        at_(at),
        position_(at == nullptr ? nullptr : at->position.data()),
        left_(count),
        n_rows_(args.n_rows) {
    args_.x = static_cast<const T*>(x.const_data_ptr());
    args_.x_stride = x.stride(0);
    last_scale_ = 1 / static_cast<Accumulator<T>>(count + 1);
  }

  // The next layer, at the rows of `to`; base_rows[k] of the base is added to its row k.
  void next(Set to, const int64_t* base_rows) {
    const bool side_by_side = to != nullptr && kSideBySide * to->size() < n_rows_;
    const Tensor y = new_matrix(x_, side_by_side ? to->size() : n_rows_, args_.width);
    put(to, base_rows, y, to == nullptr || side_by_side ? nullptr : to->rows.data());
    x_ = y;
    at_ = to;
    position_ = side_by_side ? to->position.data() : nullptr;
    args_.x = args_.y;
    args_.x_stride = args_.width;
  }

  // The same, its row k to row y_rows[k] of y.
  void put(Set to, const int64_t* base_rows, const Tensor& y, const int64_t* y_rows) {
    args_.y = static_cast<T*>(y.mutable_data_ptr());
    args_.y_rows = y_rows;
    args_.n_rows = to == nullptr ? n_rows_ : to->size();
    args_.base_rows = base_rows;
    args_.read_next = --left_ > 0;
    args_.scale = args_.read_next ? 1 : last_scale_;
    const int64_t* rows = to == nullptr ? nullptr : to->rows.data();
    spmm_run(functions_, args_, {rows, args_.n_rows, at_ == nullptr ? nullptr : at_->bits.data(), position_});
  }

  const Tensor& last() const { return x_; }

  // Where a row stands in last().
  int64_t place(int64_t row) const { return position_ == nullptr ? row : position_[row]; }

 private:
  const SpmmFunctions<T, Index>& functions_;
  SpmmArgs<T, Index> args_;
  Tensor x_;
  Set at_;
  const Index* position_;  // of the rows of at_ where they are side by side, else null
  int64_t left_, n_rows_;
  Accumulator<T> last_scale_;
};

Tensor propagate_rows(const Csr& a, const Tensor& x, int64_t layers, const std::vector<int64_t>& list) {
  Tensor result = new_matrix(x, static_cast<int64_t>(list.size()), x.size(1));
  if (result.numel() == 0) return result;
  a.visit(x, [&](const auto& functions, auto args) {
    using T = ElementOf<decltype(args)>;
    using Index = IndexOf<decltype(args)>;
    const auto copy = [&](const Tensor& from, const std::vector<int64_t>& places) {
      copy_rows(static_cast<const char*>(from.const_data_ptr()), from.stride(0) * sizeof(T), places,
                static_cast<char*>(result.mutable_data_ptr()), args.width * sizeof(T));
    };
    if (layers == 0) return copy(x, list);
    const Sets<Index> sets = reached_rows<Index>(a, list, layers, false);
    args.base = args.x;
    args.base_stride = args.x_stride;
    Layers<T, Index> chain(functions, args, x, nullptr, layers);
    for (int64_t left = layers - 1; left > 0; --left) {
      const RowSet<Index>* set = left < static_cast<int64_t>(sets.size()) ? &sets[left] : nullptr;
      chain.next(set, set == nullptr ? nullptr : set->rows.data());
    }
    const RowSet<Index>& own = sets[0];
    if (own.rows == list) return chain.put(&own, list.data(), result, nullptr);
    chain.next(&own, own.rows.data());
    std::vector<int64_t> places(list.size());
    for (size_t k = 0; k < list.size(); ++k) places[k] = chain.place(list[k]);
    copy(chain.last(), places);
  });
  return result;
}

// The places in one set of the rows of another, or of all rows; negative where they are not in it.
template <typename Index>
std::vector<int64_t> places_of(const RowSet<Index>& set, const RowSet<Index>* rows) {
  if (rows == nullptr) return {set.position.begin(), set.position.end()};
  std::vector<int64_t> places(rows->size());
  for (int64_t k = 0; k < rows->size(); ++k) places[k] = set.position[rows->rows[k]];
  return places;
}

Tensor propagate_rows_t(const Csr& a, const Csr& t, const Tensor& grad, int64_t layers,
                        const std::vector<int64_t>& list) {
  Tensor result = new_matrix(grad, a.n_rows, grad.size(1));
  if (result.numel() == 0) return result;
  t.visit(grad, [&](const auto& functions, auto args) {
    using T = ElementOf<decltype(args)>;
    using Index = IndexOf<decltype(args)>;
    const Sets<Index> sets = reached_rows<Index>(a, list, layers + 1, true);
    const Tensor sums = sum_repeats(functions, sets[0], list, grad);
    const int64_t row_bytes = args.width * sizeof(T);
    char* out = static_cast<char*>(result.mutable_data_ptr());
    if (layers == 0) {
      put_rows(static_cast<const char*>(sums.const_data_ptr()), sets[0].rows, out, row_bytes);
      return clear_other_rows(mask_of(list, a.n_rows), out, row_bytes);
    }
    args.base = static_cast<const T*>(sums.const_data_ptr());
    args.base_stride = args.width;
    Layers<T, Index> chain(functions, args, sums, &sets[0], layers);
    for (int64_t step = 1; step <= layers; ++step) {
      const RowSet<Index>* set = step < static_cast<int64_t>(sets.size()) ? &sets[step] : nullptr;
      const std::vector<int64_t> base_rows = places_of(sets[0], set);
      if (step < layers) {
        chain.next(set, base_rows.data());
      } else {
        chain.put(set, base_rows.data(), result, set == nullptr ? nullptr : set->rows.data());
        if (set != nullptr) clear_other_rows(mask_of(set->rows, a.n_rows), out, row_bytes);
      }
    }
  });
  return result;
}

}  // namespace

Tensor propagate(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional&, const Optional&,
                 const Optional&, const Tensor& x_in, int64_t layers, const Optional& rows) {
  const Tensor x = dense_matrix(x_in, "x");
  const Csr a(rowptr, col, value, x);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(a.n_rows == x.size(0), "x: expected a row for each row of the graph");
  return rows ? propagate_rows(a, x, layers, row_list(*rows, a.n_rows)) : propagate_all(a, x, layers);
}

Tensor propagate_t(const Tensor& rowptr, const Tensor& col, const Tensor& value, const Optional& rowptr_t,
                   const Optional& col_t, const Optional& value_t, const Tensor& grad_in, int64_t layers,
                   const Optional& rows) {
  const Tensor grad = dense_matrix(grad_in, "grad");
  const Csr a(rowptr, col, value, grad);
  const Csr t = transpose_of(a, {rowptr_t, col_t, value_t, std::nullopt}, a.n_rows);
  STD_TORCH_CHECK(layers >= 0, "layers: expected at least 0");
  STD_TORCH_CHECK(t.n_rows == a.n_rows && t.wide == a.wide, "rowptr_t and col_t: expected those of the transpose");
  if (!rows) {
    STD_TORCH_CHECK(grad.size(0) == a.n_rows, "grad: expected a row for each row of the graph");
    return propagate_all(t, grad, layers);
  }
  const std::vector<int64_t> list = row_list(*rows, a.n_rows);
  STD_TORCH_CHECK(grad.size(0) == static_cast<int64_t>(list.size()), "grad: expected a row for each of rows");
  return propagate_rows_t(a, t, grad, layers, list);
}

}  // namespace crane
