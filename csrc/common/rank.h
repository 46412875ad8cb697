// Where each row of a set stands among them, in two bits a row: small enough to stay in the cache where an array of
// positions would not.
#pragma once

#include <cstdint>

namespace crane {

// 64 rows: which of them are in the set, and how many of the set come before.
struct Rank {
  uint64_t members;
  int64_t before;
};

// The place of a row in the set, or a negative number. Of internal linkage, as kernel sources need it: see vector.h.
static inline int64_t rank_of(const Rank* ranks, int64_t row) {
  const Rank& rank = ranks[row >> 6];
  const uint64_t bit = uint64_t{1} << (row & 63);
  const int64_t place = rank.before + __builtin_popcountll(rank.members & (bit - 1));
  return (rank.members & bit) != 0 ? place : -1;
}

}  // namespace crane
