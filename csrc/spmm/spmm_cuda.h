// Sparse times dense on CUDA: raw pointers to device memory and a stream, no torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace crane::cuda {

enum class Type { kFloat, kDouble, kHalf, kBFloat16 };
enum class Reduce { kSum, kMean, kMax };

inline int64_t element_bytes(Type type) { return type == Type::kFloat ? 4 : type == Type::kDouble ? 8 : 2; }

// A in compressed sparse rows.
struct Csr {
  const int64_t* rowptr;  // n_rows + 1
  const void* col;        // n_edges, int64 if wide, else int32
  const void* value;      // n_edges
  int64_t n_rows;
  int64_t n_edges;
  bool wide;
};

// y[k] = scale * (base[i] + reduction over the edges e of row i of value[e] * x[col[e]]), where i = rows[k], or k.
//
// Accumulates in float, for double in double, in an order that depends on the shapes alone: the same bits every time.
// The mean of a row without edges is 0, as is its maximum. A mask holds one byte a row; what it leaves out is never
// touched.
struct Spmm {
  Csr a;
  Type type;                 // of value, x, base and y
  const void* x;             // width columns, rows x_stride elements apart
  const uint8_t* x_mask;     // null, or which rows of x count: the others are zeros (kSum and kMean only)
  const void* base;          // null: zeros; as long as A
  const uint8_t* base_mask;  // null, or which rows of base count: the others are zeros
  void* y;                   // n_out rows of width elements
  int64_t* argmax;           // null, or the like of y: for kMax the edge that won, the first of equals; -1: none
  const int64_t* rows;       // null, or n_out rows of A
  const uint8_t* y_mask;     // null, or which rows to compute, with rows null
  int64_t n_out;             // the number of rows of A with rows null
  int64_t width, x_stride, base_stride;
  double scale;
  Reduce reduce;
};

// Bytes of device memory, aligned to 16, that the call needs while it runs.
size_t spmm_workspace(const Spmm& call);

// The same for a sum or mean that is not described any further.
inline size_t product_workspace(const Csr& a, Type type, int64_t width, const int64_t* rows = nullptr) {
  Spmm call{};
  call.a = a;
  call.type = type;
  call.width = width;
  call.rows = rows;
  return spmm_workspace(call);
}

// Returns null, or what went wrong.
const char* spmm(const Spmm& call, void* workspace, void* stream);

// out[e] = dot of g[row of e] and x[col[e]] (over the number of edges of the row if `mean`): the gradient of a sum's
// (or mean's) edge values, where g is that of y. out has the type of g and x; sums are held as in Spmm.
struct Sddmm {
  Csr a;  // value is not used
  Type type;
  const void* g;
  const uint8_t* g_mask;  // null, or which rows of g count: the others are zeros
  const void* x;
  void* out;  // n_edges
  int64_t width, g_stride, x_stride;
  bool mean;
};

const char* sddmm(const Sddmm& call, void* stream);

// Sets reached[rows[k]] = 1 for k < n; reached is n_rows long.
const char* mark_rows(const int64_t* rows, int64_t n, int64_t n_rows, uint8_t* reached, void* stream);

// Sets reached[col[e]] = 1 for every edge e of the rows i with wanted[i] != 0.
const char* mark_columns(const Csr& a, const uint8_t* wanted, uint8_t* reached, void* stream);

// Rows that are wanted, with repetitions, in ascending order: row sorted[p] stood at place[p] of the list.
struct RowList {
  const int64_t* sorted;
  const int64_t* place;
  int64_t n;
};

// out[i] = scale * sum of x[k] over the places k of row i, for the rows of the list alone; also sets mask[i] = 1.
struct SumRows {
  RowList rows;
  int64_t n_rows;  // of out
  Type type;
  const void* x;  // a row for each place, x_stride elements apart
  void* out;      // rows of width elements
  uint8_t* mask;
  int64_t width, x_stride;
  double scale;
};

const char* sum_rows(const SumRows& call, void* stream);

// y = A[rows]^T grad, with a row of grad for each place of the list.
struct SpmmT {
  Csr a, t;  // A and its transpose; the values of A are not used
  RowList rows;
  Type type;
  const void* grad;
  void* y;  // as many rows as t
  int64_t width, grad_stride;
};

// Bytes of device memory, aligned to 16, that the call needs while it runs.
size_t spmm_t_workspace(const SpmmT& call);

const char* spmm_t(const SpmmT& call, void* workspace, void* stream);

// out[e] = value[order[e]] for e < n; order is int64 if wide, else int32.
const char* reorder(const void* value, const void* order, bool wide, Type type, int64_t n, void* out, void* stream);

}  // namespace crane::cuda
