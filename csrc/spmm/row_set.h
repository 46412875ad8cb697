// Sets of rows, for what computes only some of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "common/tensors.h"

namespace crane {

// One byte a row: whether it is in the set.
using Mask = std::vector<uint8_t>;

// rows as int64, each checked to be one of n_rows.
inline std::vector<int64_t> row_list(const Tensor& rows, int64_t n_rows) {
  const bool wide = rows.scalar_type() == ScalarType::Long;
  check_vector(rows, wide ? ScalarType::Long : ScalarType::Int, "rows");
  std::vector<int64_t> list(rows.numel());
  if (wide) {
    std::copy_n(rows.const_data_ptr<int64_t>(), list.size(), list.begin());
  } else {
    std::copy_n(rows.const_data_ptr<int32_t>(), list.size(), list.begin());
  }
  for (int64_t row : list) {
    STD_TORCH_CHECK(row >= 0 && row < n_rows, "rows: found ", row, ", expected 0 to ", n_rows - 1);
  }
  return list;
}

inline Mask mask_of(const std::vector<int64_t>& rows, int64_t n) {
  Mask mask(n);
  for (int64_t row : rows) mask[row] = 1;
  return mask;
}

// A set of rows in ascending order, where each of all rows stands among them (-1: nowhere), and a bit for each of all
// rows, whether it is one: of millions of rows a cache holds the bits and not the positions.
template <typename Index>
struct RowSet {
  std::vector<int64_t> rows;
  std::vector<Index> position;
  std::vector<uint64_t> bits;

  explicit RowSet(const Mask& mask) : position(mask.size()), bits((mask.size() + 63) / 64) {
    constexpr int64_t kChunk = 1 << 15;  // of whole words of bits
    const int64_t n = static_cast<int64_t>(mask.size()), n_chunks = (n + kChunk - 1) / kChunk;
    std::vector<int64_t> before(n_chunks + 1);
    parallel_tasks(n_chunks, [&](int64_t c) {
      const auto begin = mask.begin() + c * kChunk, end = mask.begin() + std::min(n, (c + 1) * kChunk);
      before[c + 1] = std::count(begin, end, 1);
    });
    for (int64_t c = 0; c < n_chunks; ++c) before[c + 1] += before[c];
    rows.resize(before[n_chunks]);
    parallel_tasks(n_chunks, [&](int64_t c) {
      const int64_t begin = c * kChunk, end = std::min(n, begin + kChunk);
      std::fill(position.begin() + begin, position.begin() + end, Index{-1});
      int64_t next = before[c];
      for (int64_t first = begin; first < end; first += 64) {
        uint64_t word = word_of(mask, first, std::min<int64_t>(64, end - first));
        bits[first / 64] = word;
        for (; word != 0; word &= word - 1) {
          const int64_t row = first + std::countr_zero(word);
          position[row] = static_cast<Index>(next);
          rows[next++] = row;
        }
      }
    });
  }

  int64_t size() const { return static_cast<int64_t>(rows.size()); }
  bool has(int64_t row) const { return bits[row / 64] >> (row % 64) & 1; }

 private:
  // The mask of n <= 64 rows from `first` on, a bit each.
  static uint64_t word_of(const Mask& mask, int64_t first, int64_t n) {
    uint64_t word = 0;
    for (int64_t j = 0; j < n; ++j) word |= uint64_t{mask[first + j]} << j;
    return word;
  }
};

// Adds the columns that the rows have edges to.
template <typename Index>
void mark_columns(const int64_t* rowptr, const Index* col, const std::vector<int64_t>& rows, Mask& mask) {
  constexpr int64_t kChunk = 256;
  const int64_t n = static_cast<int64_t>(rows.size());
  parallel_tasks((n + kChunk - 1) / kChunk, [&](int64_t c) {
    for (int64_t k = c * kChunk; k < std::min(n, (c + 1) * kChunk); ++k) {
      for (int64_t e = rowptr[rows[k]]; e < rowptr[rows[k] + 1]; ++e) {
        std::atomic_ref<uint8_t>(mask[col[e]]).store(1, std::memory_order_relaxed);
      }
    }
  });
}

// Zeroes the rows of y, `bytes` long each, that are not in the set.
inline void clear_other_rows(const Mask& mask, void* y, int64_t bytes) {
  constexpr int64_t kChunk = 1024;
  const int64_t n = static_cast<int64_t>(mask.size());
  parallel_tasks((n + kChunk - 1) / kChunk, [&](int64_t c) {
    for (int64_t i = c * kChunk; i < std::min(n, (c + 1) * kChunk); ++i) {
      if (!mask[i]) std::memset(static_cast<char*>(y) + i * bytes, 0, bytes);
    }
  });
}

}  // namespace crane
