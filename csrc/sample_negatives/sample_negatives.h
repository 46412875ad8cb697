// Ranks among the items without an edge to items, on host arrays.
#pragma once

#include <cstdint>

namespace crane {

// items[b] = the ranks[b]-th column (from 0) that row rows[b] has no edge to. The columns of a row ascend strictly.
template <typename Index>
void nth_absent(const int64_t* rowptr, const Index* col, const int64_t* rows, const int64_t* ranks, int64_t* items,
                int64_t n) {
  for (int64_t b = 0; b < n; ++b) {
    const Index* present = col + rowptr[rows[b]];
    // present[j] - j columns without an edge precede present[j]: how many j have at most ranks[b] of them?
    int64_t low = 0, high = rowptr[rows[b] + 1] - rowptr[rows[b]];
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (present[middle] - middle <= ranks[b]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    items[b] = ranks[b] + low;
  }
}

}  // namespace crane
