// By Horner's rule: x + A x + ... + A^L x = x + A (x + A (x + ...)). Every layer adds x as it stores a row, so that no
// sum over layers is kept.
//
// For some rows R_0 only, layer L is needed at R_0, layer L - 1 at the columns R_1 that R_0 has edges to, and so on.
// Layers on the way hold those rows alone, side by side. The transpose runs the other way: what reaches a layer's rows
// goes to the columns they have edges to.
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
      spmm_run(functions, args, {nullptr, a.n_rows, nullptr});
      args.x = args.y;
      args.x_stride = args.width;
    }
  });
  return result;
}

// The rows that are needed of each layer: R_0, R_1, ..., as many as there are layers.
template <typename Index>
std::vector<RowSet> needed_rows(const Csr& a, const std::vector<int64_t>& list, int64_t layers) {
  std::vector<RowSet> sets;
  sets.emplace_back(mask_of(list, a.n_rows));
  for (int64_t step = 1; step < layers; ++step) {
    Mask mask(a.n_rows);
    mark_columns(a.pointers(), a.col.const_data_ptr<Index>(), sets.back().rows(), mask);
    sets.emplace_back(mask);
  }
  return sets;
}

// to[k] = from[rows[k]] for rows of `bytes` bytes.
void copy_rows(const char* from, int64_t stride_bytes, const std::vector<int64_t>& rows, char* to, int64_t bytes) {
  constexpr int64_t kChunk = 256;
  const int64_t n = static_cast<int64_t>(rows.size());
  parallel_tasks((n + kChunk - 1) / kChunk, [&](int64_t c) {
    for (int64_t k = c * kChunk; k < std::min(n, (c + 1) * kChunk); ++k) {
      std::memcpy(to + k * bytes, from + rows[k] * stride_bytes, bytes);
    }
  });
}

Tensor propagate_rows(const Csr& a, const Tensor& x, int64_t layers, const std::vector<int64_t>& list) {
  const int64_t n_out = static_cast<int64_t>(list.size());
  Tensor result = new_matrix(x, n_out, x.size(1));
  if (result.numel() == 0) return result;
  a.visit(x, [&](const auto& functions, auto args) {
    using T = ElementOf<decltype(args)>;
    using Index = IndexOf<decltype(args)>;
    const int64_t row_bytes = args.width * sizeof(T);
    char* out = static_cast<char*>(result.mutable_data_ptr());
    if (layers == 0) {
      return copy_rows(reinterpret_cast<const char*>(args.x), args.x_stride * sizeof(T), list, out, row_bytes);
    }
    const std::vector<RowSet> sets = needed_rows<Index>(a, list, layers);
    args.base = args.x;
    args.base_stride = args.x_stride;
    Tensor y = x;  // of the layer before; lives while the next one reads it
    for (int64_t left = layers - 1; left >= 0; --left) {
      const RowSet& set = sets[left];
      const Tensor before = y;
      y = new_matrix(x, set.size(), args.width);
      args.y = static_cast<T*>(y.mutable_data_ptr());
      args.base_rows = set.rows().data();
      args.n_rows = set.size();
      args.scale = left == 0 ? 1 / static_cast<Accumulator<T>>(layers + 1) : 1;
      spmm_run(functions, args, {set.rows().data(), set.size(), left == layers - 1 ? nullptr : sets[left + 1].ranks()});
      args.x = args.y;
      args.x_stride = args.width;
    }
    std::vector<int64_t> places(list.size());
    for (size_t k = 0; k < list.size(); ++k) places[k] = sets[0].place(list[k]);
    copy_rows(static_cast<const char*>(y.const_data_ptr()), row_bytes, places, out, row_bytes);
  });
  return result;
}

// y[set.rows()[k]] += d[k].
template <typename T, typename Index>
void add_rows(const SpmmFunctions<T, Index>& functions, T* y, const T* d, int64_t width, const RowSet& set) {
  constexpr int64_t kChunk = 256;
  parallel_tasks((set.size() + kChunk - 1) / kChunk, [&](int64_t c) {
    for (int64_t k = c * kChunk; k < std::min(set.size(), (c + 1) * kChunk); ++k) {
      functions.add(y + set.rows()[k] * width, d + k * width, width);
    }
  });
}

Tensor propagate_rows_t(const Csr& a, const Csr& t, const Tensor& grad, int64_t layers,
                        const std::vector<int64_t>& list) {
  Tensor result = new_matrix(grad, a.n_rows, grad.size(1));
  if (result.numel() == 0) return result;
  t.visit(grad, [&](const auto& functions, auto args) {
    using T = ElementOf<decltype(args)>;
    using Index = IndexOf<decltype(args)>;
    const std::vector<RowSet> sets = needed_rows<Index>(a, list, std::max<int64_t>(layers, 1));
    // What arrives at each R_s: it goes on to the next, and as it is to the result.
    std::vector<Tensor> arrived{sum_repeats(functions, sets[0], list, grad, layers + 1)};
    const auto rows_of = [&](int64_t step) { return static_cast<T*>(arrived[step].mutable_data_ptr()); };
    args.x_stride = args.width;
    for (int64_t step = 1; step < layers; ++step) {
      arrived.push_back(new_matrix(grad, sets[step].size(), args.width));
      args.x = rows_of(step - 1);
      args.y = rows_of(step);
      args.n_rows = sets[step].size();
      spmm_run(functions, args, {sets[step].rows().data(), sets[step].size(), sets[step - 1].ranks()});
    }
    args.y = static_cast<T*>(result.mutable_data_ptr());
    Mask reached(a.n_rows);
    if (layers > 0) {  // the last product takes along what arrived at the rows that it comes from
      const RowSet& from = sets.back();
      reached = mask_of(from.rows(), a.n_rows);
      mark_columns(a.pointers(), a.col.const_data_ptr<Index>(), from.rows(), reached);
      const RowSet out(reached);
      std::vector<int64_t> base_rows(out.size());
      for (int64_t k = 0; k < out.size(); ++k) base_rows[k] = from.place(out.rows()[k]);
      args.x = rows_of(layers - 1);
      args.base = args.x;
      args.base_stride = args.width;
      args.base_rows = base_rows.data();
      args.y_rows = out.rows().data();
      args.n_rows = out.size();
      spmm_run(functions, args, {out.rows().data(), out.size(), from.ranks()});
    }
    clear_other_rows(reached, args.y, args.width * sizeof(T));
    for (int64_t step = std::max<int64_t>(layers - 2, 0); step >= 0 && layers != 1; --step) {
      add_rows(functions, args.y, rows_of(step), args.width, sets[step]);
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
