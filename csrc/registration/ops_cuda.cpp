// CUDA kernels of the operators that registration/ops.cpp defines, in a library of their own.
#include <torch/csrc/stable/library.h>

#include <type_traits>

#include "propagate/propagate.h"
#include "spmm/spmm.h"
#include "spmm/spmm_cuda_tensors.h"

// Kernels take their arguments from a stack that nobody holds against the schema. Calls in the tests do for those of
// the CPU, whose types those for CUDA must have.
#define CRANE_CUDA_KERNEL(name)                                                                \
  static_assert(std::is_same_v<decltype(crane::name), decltype(crane::cuda::name##_tensors)>); \
  m.impl(#name, TORCH_BOX(&crane::cuda::name##_tensors))

STABLE_TORCH_LIBRARY_IMPL(crane_kernels, CUDA, m) {
  CRANE_CUDA_KERNEL(spmm);
  CRANE_CUDA_KERNEL(spmm_t);
  CRANE_CUDA_KERNEL(spmm_max);
  CRANE_CUDA_KERNEL(sddmm);
  CRANE_CUDA_KERNEL(propagate);
  CRANE_CUDA_KERNEL(propagate_t);
}
