// By Horner's rule, as on the CPU: x + A x + ... + A^L x = x + A (x + A (x + ...)). Every layer adds x as it stores a
// row, so that no sum over layers is kept. What the wanted rows need of each layer is found first, as masks of rows.
#include <algorithm>

#include "common/device.cuh"
#include "propagate/propagate_cuda.h"

namespace crane::cuda {

namespace {

// How the workspace is divided: layers on the way, masks of their rows, what the products need.
struct Layout {
  int64_t n_buffers, n_masks;
  size_t buffer_bytes, mask_bytes, masks, products, end;

  explicit Layout(const Propagate& call) {
    const int64_t on_the_way = std::max<int64_t>(call.layers - 1, 0);
    // All rows: y itself is one of the two buffers that the layers alternate between.
    n_buffers = std::min<int64_t>(on_the_way, call.rows == nullptr ? 1 : 2);
    // The wanted rows and what they reach in one step, in two, ...; for no layer, a mask without any row.
    n_masks = call.layers == 0 ? 1 : call.rows == nullptr || on_the_way == 0 ? 0 : call.layers;
    buffer_bytes = aligned(call.a.n_rows * call.width * element_bytes(call.type));
    mask_bytes = aligned(call.a.n_rows);
    masks = static_cast<size_t>(n_buffers) * buffer_bytes;
    products = masks + static_cast<size_t>(n_masks) * mask_bytes;
    end = products + product_workspace(call.a, call.type, call.width, call.rows);
  }
};

const char* mark(const Propagate& call, const Layout& layout, uint8_t* masks, void* stream) {
  const char* error = fill_zero(masks, static_cast<size_t>(layout.n_masks) * layout.mask_bytes, stream);
  if (error == nullptr && call.layers > 0) error = mark_rows(call.rows, call.n_out, call.a.n_rows, masks, stream);
  for (int64_t step = 1; step < layout.n_masks && error == nullptr; ++step) {
    uint8_t* reached = masks + static_cast<size_t>(step) * layout.mask_bytes;
    error = mark_columns(call.a, reached - layout.mask_bytes, reached, stream);
  }
  return error;
}

}  // namespace

size_t propagate_workspace(const Propagate& call) { return Layout(call).end; }

const char* propagate(const Propagate& call, void* workspace, void* stream) {
  const Layout layout(call);
  char* memory = static_cast<char*>(workspace);
  uint8_t* masks = reinterpret_cast<uint8_t*>(memory + layout.masks);
  const char* error = layout.n_masks == 0 ? nullptr : mark(call, layout, masks, stream);
  const void* from = call.x;
  int64_t from_stride = call.x_stride;
  // `left` layers come after the one that is computed.
  for (int64_t left = std::max<int64_t>(call.layers - 1, 0); left >= 0 && error == nullptr; --left) {
    Spmm product{};
    product.a = call.a;
    product.type = call.type;
    product.x = from;
    product.x_stride = from_stride;
    product.base = call.x;
    product.base_stride = call.x_stride;
    product.width = call.width;
    product.n_out = call.a.n_rows;
    product.scale = 1;
    if (left == 0) {
      product.scale = 1.0 / static_cast<double>(call.layers + 1);
      product.y = call.y;
      product.rows = call.rows;
      product.n_out = call.n_out;
      if (call.layers == 0) product.x_mask = masks;  // none: only x itself
    } else {
      // The layers alternate, and the last but one is not where the last one goes.
      const bool in_y = call.rows == nullptr && left % 2 == 0;
      const size_t buffer = call.rows == nullptr ? 0 : static_cast<size_t>(left % 2 == 0 ? 1 : 0);
      product.y = in_y ? call.y : memory + buffer * layout.buffer_bytes;
      if (call.rows != nullptr) product.y_mask = masks + static_cast<size_t>(left) * layout.mask_bytes;
    }
    error = spmm(product, memory + layout.products, stream);
    from = product.y;
    from_stride = call.width;
  }
  return error;
}

namespace {

// How the transpose divides its workspace: what arrives at the rows of the list, the layers on the way, masks of the
// rows that each holds, what the products need.
struct TransposedLayout {
  size_t buffer_bytes, mask_bytes, masks, products, end;

  explicit TransposedLayout(const PropagateT& call) {
    buffer_bytes = aligned(call.a.n_rows * call.width * element_bytes(call.type));
    mask_bytes = aligned(call.a.n_rows);
    masks = 3 * buffer_bytes;
    products = masks + static_cast<size_t>(call.layers + 1) * mask_bytes;
    end = products + product_workspace(call.t, call.type, call.width);
  }
};

// Marks the rows of the list in all masks, and in each the columns that the rows of the one before have edges to.
const char* mark_arrivals(const PropagateT& call, const TransposedLayout& layout, uint8_t* masks, void* stream) {
  const char* error = nullptr;
  for (int64_t step = 1; step <= call.layers && error == nullptr; ++step) {
    uint8_t* mask = masks + static_cast<size_t>(step) * layout.mask_bytes;
    error = mark_rows(call.rows.sorted, call.rows.n, call.a.n_rows, mask, stream);
    if (error == nullptr) error = mark_columns(call.a, mask - layout.mask_bytes, mask, stream);
  }
  return error;
}

}  // namespace

size_t propagate_t_workspace(const PropagateT& call) { return TransposedLayout(call).end; }

// With g what arrives at the rows of the list: g + A^T (g + A^T (g + ...)).
const char* propagate_t(const PropagateT& call, void* workspace, void* stream) {
  const TransposedLayout layout(call);
  char* memory = static_cast<char*>(workspace);
  uint8_t* masks = reinterpret_cast<uint8_t*>(memory + layout.masks);
  const size_t y_bytes = static_cast<size_t>(call.a.n_rows * call.width * element_bytes(call.type));
  const char* error = fill_zero(call.y, y_bytes, stream);
  if (error == nullptr) error = fill_zero(masks, layout.products - layout.masks, stream);
  void* arrived = call.layers == 0 ? call.y : memory;
  if (error == nullptr) {
    error = sum_rows({call.rows, call.a.n_rows, call.type, call.grad, arrived, masks, call.width, call.grad_stride, 1},
                     stream);
  }
  if (error == nullptr) error = mark_arrivals(call, layout, masks, stream);
  const void* from = arrived;
  for (int64_t step = 1; step <= call.layers && error == nullptr; ++step) {
    const bool last = step == call.layers;
    Spmm product{};
    product.a = call.t;
    product.type = call.type;
    product.x = from;
    product.x_mask = masks + static_cast<size_t>(step - 1) * layout.mask_bytes;
    product.base = arrived;
    product.base_mask = masks;
    product.y = last ? call.y : memory + static_cast<size_t>(1 + step % 2) * layout.buffer_bytes;
    product.y_mask = masks + static_cast<size_t>(step) * layout.mask_bytes;
    product.n_out = call.a.n_rows;
    product.width = product.x_stride = product.base_stride = call.width;
    product.scale = last ? 1.0 / static_cast<double>(call.layers + 1) : 1.0;
    error = spmm(product, memory + layout.products, stream);
    from = product.y;
  }
  return error;
}

}  // namespace crane::cuda
