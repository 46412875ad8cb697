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
    // present[j] - j columns without an edge precede present[j]: how many j have at most ranks[b] of them? Halved
    // without a branch, which would be guessed wrong half of the time.
    const auto precedes = [&](int64_t j) { return static_cast<int64_t>(present[j] - j <= ranks[b]); };
    int64_t low = 0, length = rowptr[rows[b] + 1] - rowptr[rows[b]];
    for (; length > 1; length -= length / 2) low += length / 2 * precedes(low + length / 2 - 1);
    if (length == 1) low += precedes(low);
    items[b] = ranks[b] + low;
  }
}

}  // namespace crane
