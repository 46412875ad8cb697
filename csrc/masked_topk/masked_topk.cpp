#include "masked_topk/masked_topk.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "masked_topk/kernel.h"

namespace crane {

namespace {

template <typename T>
void run(const TopkFunctions<T>& functions, TopkArgs<T> args) {
  const int64_t n_panels = (args.n_items + functions.panel - 1) / functions.panel;
  std::vector<T> packed(n_panels * functions.panel * args.width);
  args.packed = packed.data();
  parallel_tasks(n_panels, [&](int64_t p) { functions.pack(args, p); });
  const int64_t n_tiles = (args.n_users + functions.tile - 1) / functions.tile;
  parallel_tasks(n_tiles, [&](int64_t t) {
    std::vector<T> scratch(functions.scratch(args.width));
    functions.rank(args, t * functions.tile, scratch.data());
  });
}

}  // namespace

std::tuple<Tensor, Tensor> masked_topk(const Tensor& user_in, const Tensor& item_in,
                                       const std::optional<Tensor>& seen_rowptr, const std::optional<Tensor>& seen_col,
                                       int64_t k) {
  const Tensor user = dense_rows(user_in), item = dense_rows(item_in);
  STD_TORCH_CHECK(user.is_cpu() && item.is_cpu() && user.dim() == 2 && item.dim() == 2 && user.size(1) == item.size(1),
                  "user and item: expected CPU matrices of one width");
  STD_TORCH_CHECK(user.scalar_type() == item.scalar_type() &&
                      (user.scalar_type() == ScalarType::Float || user.scalar_type() == ScalarType::Double),
                  "user and item: expected float32 or float64");
  STD_TORCH_CHECK(k >= 1, "k: expected at least 1");
  STD_TORCH_CHECK(seen_rowptr.has_value() == seen_col.has_value(), "seen: expected both of its arrays or none");
  if (seen_rowptr.has_value()) {
    check_vector(*seen_rowptr, ScalarType::Long, "seen_rowptr");
    check_vector(*seen_col, ScalarType::Int, "seen_col");
    STD_TORCH_CHECK(seen_rowptr->size(0) == user.size(0) + 1, "seen_rowptr: expected one entry more than users");
    const int64_t* rowptr = seen_rowptr->const_data_ptr<int64_t>();
    const int64_t first = rowptr[0], last = rowptr[user.size(0)], n_seen = seen_col->size(0);
    STD_TORCH_CHECK(first == 0 && last == n_seen && std::is_sorted(rowptr, rowptr + user.size(0) + 1),
                    "seen_rowptr: found it from ", first, " to ", last, ", expected it to ascend from 0 to ", n_seen,
                    ", the length of seen_col");
  }
  Tensor scores = torch::stable::new_empty(user, {user.size(0), k});
  Tensor indices = torch::stable::new_empty(user, {user.size(0), k}, ScalarType::Long);
  const auto rank = [&](const auto& functions, auto args) {
    using T = std::remove_pointer_t<decltype(args.scores)>;
    args.user = user.const_data_ptr<T>();
    args.user_stride = user.stride(0);
    args.item = item.const_data_ptr<T>();
    args.item_stride = item.stride(0);
    args.n_users = user.size(0);
    args.n_items = item.size(0);
    args.width = user.size(1);
    args.seen_rowptr = seen_rowptr.has_value() ? seen_rowptr->const_data_ptr<int64_t>() : nullptr;
    args.seen_col = seen_col.has_value() ? seen_col->const_data_ptr<int32_t>() : nullptr;
    args.k = k;
    args.scores = static_cast<T*>(scores.mutable_data_ptr());
    args.indices = indices.mutable_data_ptr<int64_t>();
    run(functions, args);
  };
  if (user.scalar_type() == ScalarType::Float) {
    rank(topk_table().of_float, TopkArgs<float>{});
  } else {
    rank(topk_table().of_double, TopkArgs<double>{});
  }
  return {scores, indices};
}

}  // namespace crane
