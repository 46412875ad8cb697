// Scores of a tile of users against all items, and the best k of each: see kernel.cpp.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace crane {

template <typename T>
struct TopkArgs {
  const T* user;  // n_users x width
  int64_t user_stride;
  const T* item;  // n_items x width
  int64_t item_stride;
  T* packed;  // items in the order the kernel reads them: TopkFunctions::packed_size elements
  int64_t n_users;
  int64_t n_items;
  int64_t width;
  const int64_t* seen_rowptr;  // null: nothing was seen
  const int32_t* seen_col;     // ascending within a user
  int64_t k;
  T* scores;         // n_users x k
  int64_t* indices;  // n_users x k
};

template <typename T>
struct TopkFunctions {
  int64_t tile;   // users of a tile
  int64_t panel;  // items of a panel
  // Copies panel p of the items to args.packed; there are ceil(n_items / panel) of them.
  void (*pack)(const TopkArgs<T>& args, int64_t p);
  // Elements of T that rank needs as scratch, for items of this width.
  int64_t (*scratch)(int64_t width);
  // Writes the scores and indices of the users [begin, begin + tile), as far as there are some.
  void (*rank)(const TopkArgs<T>& args, int64_t begin, T* scratch);
};

struct TopkTable {
  TopkFunctions<float> of_float;
  TopkFunctions<double> of_double;
};

CRANE_KERNEL_TABLE(TopkTable, topk_table)

}  // namespace crane
