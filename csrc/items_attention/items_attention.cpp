#include "items_attention/items_attention.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/parallel.h"
#include "items_attention/kernel.h"

namespace crane {

namespace {

constexpr int64_t kChunks = 4;  // of a head: forward's of queries, backward's of keys, which sum the queries' gradients

void check(const Tensor& x, const Tensor& like, int64_t dimensions) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == dimensions,
                  "items_attention: expected float32 CPU tensors of batch, heads, rows, width");
  for (int64_t i = 0; i < dimensions; ++i) {
    STD_TORCH_CHECK(x.size(i) == like.size(i), "items_attention: expected tensors of one shape");
  }
}

// x with the elements of a row next to each other.
Tensor dense_last(const Tensor& x) { return x.stride(3) == 1 || x.size(3) == 1 ? x : torch::stable::contiguous(x); }

// The batch entries and heads of a tensor.
struct Slices {
  explicit Slices(const Tensor& x) : data(x.const_data_ptr<float>()), tensor(x) {}
  Rows operator()(int64_t slice) const {
    const int64_t heads = tensor.size(1);
    return {data + slice / heads * tensor.stride(0) + slice % heads * tensor.stride(1), tensor.stride(2)};
  }
  const float* data;
  const Tensor& tensor;
};

// Calls f(slice, chunk, begin, end) for chunks of the n rows of each slice, whatever the number of threads.
template <typename F>
void for_chunks(int64_t slices, int64_t n, const F& f) {
  const int64_t rows = (n + kChunks - 1) / kChunks;
  parallel_tasks(n == 0 ? 0 : slices * kChunks, [&](int64_t task) {
    const int64_t chunk = task % kChunks, begin = std::min(n, chunk * rows);
    f(task / kChunks, chunk, begin, std::min(n, begin + rows));
  });
}

}  // namespace

std::tuple<Tensor, Tensor> items_attention(const Tensor& query_in, const Tensor& key_in, const Tensor& value_in) {
  check(query_in, query_in, 4);
  check(key_in, query_in, 4);
  check(value_in, query_in, 4);
  const Tensor query = dense_last(query_in), key = dense_last(key_in), value = dense_last(value_in);
  const int64_t batch = query.size(0), heads = query.size(1), n = query.size(2), width = query.size(3);
  Tensor output = torch::stable::new_empty(query, {batch, heads, n, width});
  Tensor log_sum = torch::stable::new_empty(query, {batch, heads, n});
  const ItemsAttentionTable& kernel = items_attention_table();
  const Slices queries(query), keys(key), values(value);
  float *out = output.mutable_data_ptr<float>(), *sum = log_sum.mutable_data_ptr<float>();
  for_chunks(batch * heads, n, [&](int64_t slice, int64_t, int64_t begin, int64_t end) {
    ItemsAttentionArgs args{queries(slice), keys(slice), values(slice), n, width, 1 / std::sqrt(float(width))};
    args.output = out + slice * n * width;
    args.log_sum = sum + slice * n;
    const auto scratch = std::make_unique_for_overwrite<float[]>(kernel.scratch(end - begin, width));
    kernel.forward(args, begin, end, scratch.get());
  });
  return {output, log_sum};
}

std::tuple<Tensor, Tensor, Tensor> items_attention_backward(const Tensor& grad_in, const Tensor& query_in,
                                                            const Tensor& key_in, const Tensor& value_in,
                                                            const Tensor& output_in, const Tensor& log_sum_in) {
  for (const Tensor* x : {&query_in, &grad_in, &key_in, &value_in, &output_in}) check(*x, query_in, 4);
  check(log_sum_in, query_in, 3);
  const Tensor query = dense_last(query_in), key = dense_last(key_in), value = dense_last(value_in);
  const Tensor grad = dense_last(grad_in);
  const Tensor output = torch::stable::contiguous(output_in), log_sum = torch::stable::contiguous(log_sum_in);
  const int64_t batch = query.size(0), heads = query.size(1), n = query.size(2), width = query.size(3);
  const auto result = [&] { return torch::stable::new_empty(query, {batch, heads, n, width}); };
  Tensor grad_query = result(), grad_key = result(), grad_value = result();
  const ItemsAttentionTable& kernel = items_attention_table();
  const Slices queries(query), keys(key), values(value), grads(grad);
  const float *out = output.const_data_ptr<float>(), *sum = log_sum.const_data_ptr<float>();
  float *of_key = grad_key.mutable_data_ptr<float>(), *of_value = grad_value.mutable_data_ptr<float>();
  const int64_t size = n * width;
  const auto parts = std::make_unique_for_overwrite<float[]>(batch * heads * kChunks * size);
  for_chunks(batch * heads, n, [&](int64_t slice, int64_t chunk, int64_t begin, int64_t end) {
    ItemsAttentionArgs args{queries(slice), keys(slice), values(slice), n, width, 1 / std::sqrt(float(width))};
    args.output = const_cast<float*>(out) + slice * size;
    args.log_sum = const_cast<float*>(sum) + slice * n;
    args.grad = grads(slice);
    args.grad_key = of_key + slice * size;
    args.grad_value = of_value + slice * size;
    const auto scratch = std::make_unique_for_overwrite<float[]>(kernel.scratch(n, width));
    kernel.backward(args, begin, end, scratch.get(), parts.get() + (slice * kChunks + chunk) * size);
  });
  float* of_query = grad_query.mutable_data_ptr<float>();
  parallel_tasks(batch * heads, [&](int64_t slice) {
    const float* part = parts.get() + slice * kChunks * size;
    for (int64_t i = 0; i < size; ++i) {
      float total = part[i];
      for (int64_t chunk = 1; chunk < kChunks; ++chunk) total += part[chunk * size + i];
      of_query[slice * size + i] = total;
    }
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace crane
