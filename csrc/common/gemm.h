// Products of matrices that stay in cache, for kernel sources: C = A B or A^T B, row-major, accumulators in registers.
// Nothing is packed. An element of C is one chain of multiply-adds in the order of k, so that it has the same bits
// wherever its tile begins and however many rows and columns are asked for with it.
#pragma once

#include <cstdint>

#include "common/vector.h"

namespace {

// Rows and vectors of a full tile: its accumulators, a row of B and a number of A are in registers together.
constexpr int kTileRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif

// The left factor: element (i, p) is at data[i * row_stride + p * column_stride].
template <typename T>
struct LeftFactor {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
};

// A, whose rows are `stride` elements apart.
template <typename T>
LeftFactor<T> plain(const T* a, int64_t stride) {
  return {a, stride, 1};
}

// A^T, where the rows of A are `stride` elements apart.
template <typename T>
LeftFactor<T> transposed(const T* a, int64_t stride) {
  return {a, 1, stride};
}

// What gemm may do with the elements of the product, V::type (one or several neighbours in a row) at a time.

// c = A B
template <typename T>
struct Assign {
  T* c;
  int64_t stride;
  template <typename V>
  void put(int64_t row, int64_t column, typename V::type sum) const {
    V::store(c + row * stride + column, sum);
  }
};

// c = c + A B
template <typename T>
struct AddTo {
  T* c;
  int64_t stride;
  template <typename V>
  void put(int64_t row, int64_t column, typename V::type sum) const {
    T* p = c + row * stride + column;
    V::store(p, V::load(p) + sum);
  }
};

// c = base + A B
template <typename T>
struct AssignSum {
  T* c;
  int64_t stride;
  const T* base;
  int64_t base_stride;
  template <typename V>
  void put(int64_t row, int64_t column, typename V::type sum) const {
    V::store(c + row * stride + column, V::load(base + row * base_stride + column) + sum);
  }
};

template <int kRows, int kVectors, typename V, typename T, typename Result>
inline void gemm_tile(int64_t k, LeftFactor<T> a, const T* b, int64_t b_stride, int64_t row, int64_t column,
                      const Result& result) {
  constexpr int kWidth = sizeof(typename V::type) / sizeof(T);
  const T* left[kRows];
  for (int r = 0; r < kRows; ++r) left[r] = a.data + (row + r) * a.row_stride;
  b += column;
  typename V::type sum[kRows][kVectors] = {};
  for (int64_t p = 0; p < k; ++p) {
    typename V::type right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = V::load(b + v * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const T factor = left[r][p * a.column_stride];
      for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * right[v];
    }
    b += b_stride;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) result.template put<V>(row + r, column + v * kWidth, sum[r][v]);
  }
}

// All rows of some columns.
template <int kVectors, typename V, typename T, typename Result>
void gemm_columns(int64_t m, int64_t k, LeftFactor<T> a, const T* b, int64_t b_stride, int64_t column,
                  const Result& result) {
  int64_t row = 0;
  for (; row + kTileRows <= m; row += kTileRows) {
    gemm_tile<kTileRows, kVectors, V>(k, a, b, b_stride, row, column, result);
  }
  for (; row + 2 <= m; row += 2) gemm_tile<2, kVectors, V>(k, a, b, b_stride, row, column, result);
  if (row < m) gemm_tile<1, kVectors, V>(k, a, b, b_stride, row, column, result);
}

// The columns from `column` on by vectors of kWidth elements, and by narrower ones what they leave.
template <int kWidth, typename T, typename Result>
void gemm_narrow(int64_t m, int64_t n, int64_t k, LeftFactor<T> a, const T* b, int64_t b_stride, int64_t column,
                 const Result& result) {
  for (; column + kWidth <= n; column += kWidth) {
    gemm_columns<1, VectorOf<T, kWidth>>(m, k, a, b, b_stride, column, result);
  }
  if constexpr (kWidth > 1) gemm_narrow<kWidth / 2>(m, n, k, a, b, b_stride, column, result);
}

// Puts each element of the product of A (m x k) and B (k x n, rows `b_stride` elements apart) into `result`.
template <typename T, typename Result>
void gemm(int64_t m, int64_t n, int64_t k, LeftFactor<T> a, const T* b, int64_t b_stride, const Result& result) {
  constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));
  int64_t column = 0;
  for (; column + kTileVectors * kWidth <= n; column += kTileVectors * kWidth) {
    gemm_columns<kTileVectors, VectorOf<T, kWidth>>(m, k, a, b, b_stride, column, result);
  }
  gemm_narrow<kWidth>(m, n, k, a, b, b_stride, column, result);
}

}  // namespace
