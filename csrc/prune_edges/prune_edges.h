// The edges of smallest keys, on host arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace crane {

// Positions, ascending, of the `count` smallest of the keys draws[e] / weights[e]; ties by lowest position, a weight of
// zero comes last. 1 <= count <= n.
template <typename Weight>
void smallest_keys(const double* draws, const Weight* weights, int64_t n, int64_t count, int64_t* positions) {
  std::vector<double> keys(n);
  for (int64_t e = 0; e < n; ++e) keys[e] = draws[e] / static_cast<double>(weights[e]);
  std::vector<double> ordered(keys);
  std::nth_element(ordered.begin(), ordered.begin() + (count - 1), ordered.end());
  const double limit = ordered[count - 1];
  int64_t at_limit = count - std::count_if(ordered.begin(), ordered.begin() + (count - 1),
                                           [limit](double key) { return key < limit; });
  for (int64_t e = 0; e < n; ++e) {
    if (keys[e] < limit || (keys[e] == limit && at_limit-- > 0)) *positions++ = e;
  }
}

// kept_rowptr[i] = how many of the kept positions lie before rowptr[i], for n_rows + 1 entries.
inline void kept_rows(const int64_t* rowptr, int64_t n_rows, const int64_t* positions, int64_t count,
                      int64_t* kept_rowptr) {
  int64_t p = 0;
  for (int64_t i = 0; i <= n_rows; ++i) {
    while (p < count && positions[p] < rowptr[i]) ++p;
    kept_rowptr[i] = p;
  }
}

}  // namespace crane
