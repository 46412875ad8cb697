// Products with the transpose of some rows of A, and what they are made of: rows named several times are summed where
// they belong, in the order of the list, and the product then reads those rows alone.
#include "common/device.cuh"
#include "spmm/edges.cuh"
#include "spmm/spmm_cuda.h"

namespace crane::cuda {

namespace {

constexpr int kBlock = 256;

// A group of lanes for each place; the first of equal rows adds them all up.
template <typename T>
__global__ void __launch_bounds__(kBlock) sum_rows_kernel(const SumRows call, const int lanes) {
  using A = Accumulator<T>;
  const Group group(lanes);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kBlock / group.size) + group.number();
  if (first >= call.rows.n) return;
  const int64_t row = load_row(call.rows.sorted, first, call.n_rows);
  if (first > 0 && load(call.rows.sorted + first - 1) == row) return;
  int64_t last = first + 1;
  while (last < call.rows.n && load(call.rows.sorted + last) == row) ++last;
  if (group.lane == 0) store(call.mask + row, uint8_t{1});
  for (int64_t column = group.lane; column < call.width; column += group.size) {
    A sum = 0;
    for (int64_t p = first; p < last; ++p) {
      sum += widen(load(static_cast<const T*>(call.x) + load(call.rows.place + p) * call.x_stride + column));
    }
    T result;
    narrow(static_cast<A>(call.scale) * sum, result);
    store(static_cast<T*>(call.out) + row * call.width + column, result);
  }
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kBlock) reorder_kernel(const T* value, const Index* order, int64_t n, T* out) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (e < n) store(out + e, load(value + load_once(order + e)));
}

// What a product with the transpose keeps: the summed rows of grad, which rows these are, which columns they reach.
struct Layout {
  size_t wanted, reached, product, end;

  explicit Layout(const SpmmT& call) {
    wanted = aligned(call.a.n_rows * call.width * element_bytes(call.type));
    reached = wanted + aligned(call.a.n_rows);
    product = reached + aligned(call.t.n_rows);
    end = product + product_workspace(call.t, call.type, call.width);
  }
};

}  // namespace

const char* sum_rows(const SumRows& call, void* stream) {
  if (call.rows.n == 0) return nullptr;
  return with_type(call.type, [&](auto zero) {
    const int lanes = group_size(call.width);
    const dim3 grid{blocks(call.rows.n, kBlock / lanes), 1, 1};
    return launch("sum_rows", sum_rows_kernel<decltype(zero)>, grid, kBlock, 0, stream, call, lanes);
  });
}

const char* reorder(const void* value, const void* order, bool wide, Type type, int64_t n, void* out, void* stream) {
  if (n == 0) return nullptr;
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](const auto* places) {
      using Index = std::remove_const_t<std::remove_pointer_t<decltype(places)>>;
      return launch("reorder", reorder_kernel<T, Index>, dim3{blocks(n, kBlock), 1, 1}, kBlock, 0, stream,
                    static_cast<const T*>(value), places, n, static_cast<T*>(out));
    };
    return wide ? run(static_cast<const int64_t*>(order)) : run(static_cast<const int32_t*>(order));
  });
}

size_t spmm_t_workspace(const SpmmT& call) { return Layout(call).end; }

const char* spmm_t(const SpmmT& call, void* workspace, void* stream) {
  const Layout layout(call);
  char* memory = static_cast<char*>(workspace);
  uint8_t* wanted = reinterpret_cast<uint8_t*>(memory + layout.wanted);
  uint8_t* reached = reinterpret_cast<uint8_t*>(memory + layout.reached);
  const size_t y_bytes = static_cast<size_t>(call.t.n_rows * call.width * element_bytes(call.type));
  const char* error = fill_zero(wanted, layout.product - layout.wanted, stream);
  if (error == nullptr) error = fill_zero(call.y, y_bytes, stream);
  if (error == nullptr) {
    error = sum_rows({call.rows, call.a.n_rows, call.type, call.grad, memory, wanted, call.width, call.grad_stride, 1},
                     stream);
  }
  if (error == nullptr) error = mark_columns(call.a, wanted, reached, stream);
  if (error != nullptr) return error;
  Spmm product{};
  product.a = call.t;
  product.type = call.type;
  product.x = memory;
  product.x_mask = wanted;
  product.y = call.y;
  product.y_mask = reached;
  product.n_out = call.t.n_rows;
  product.width = product.x_stride = call.width;
  product.scale = 1;
  return spmm(product, memory + layout.product, stream);
}

}  // namespace crane::cuda
