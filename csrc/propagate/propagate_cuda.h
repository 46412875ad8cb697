// Graph propagation with layer averaging on CUDA: raw pointers to device memory and a stream, no torch.
#pragma once

#include "spmm/spmm_cuda.h"

namespace crane::cuda {

// y[k] = mean over l = 0 .. layers of (A^l x)[rows[k]], or [k]. With rows, a layer is computed only where the wanted
// rows reach.
struct Propagate {
  Csr a;  // square
  Type type;
  const void* x;        // rows x_stride elements apart
  void* y;              // n_out rows of width elements
  const int64_t* rows;  // null, or n_out rows
  int64_t n_out, width, x_stride, layers;
};

// Bytes of device memory, aligned to 16, that the call needs while it runs.
size_t propagate_workspace(const Propagate& call);

// Returns null, or what went wrong.
const char* propagate(const Propagate& call, void* workspace, void* stream);

// y = P^T grad, where P is the matrix that propagation to these rows multiplies x by: grad has a row for each place of
// the list, y as many rows as A.
struct PropagateT {
  Csr a, t;  // A and its transpose; the values of A are not used
  RowList rows;
  Type type;
  const void* grad;
  void* y;
  int64_t width, grad_stride, layers;
};

size_t propagate_t_workspace(const PropagateT& call);

const char* propagate_t(const PropagateT& call, void* workspace, void* stream);

}  // namespace crane::cuda
