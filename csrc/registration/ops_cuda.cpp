// CUDA kernels of the operators that registration/ops.cpp defines, in a library of their own.
#include <torch/csrc/stable/library.h>

#include "spmm/spmm_cuda_tensors.h"

STABLE_TORCH_LIBRARY_IMPL(crane_kernels, CUDA, m) {
  m.impl("spmm", TORCH_BOX(&crane::cuda::spmm_tensors));
  m.impl("spmm_t", TORCH_BOX(&crane::cuda::spmm_t_tensors));
  m.impl("propagate_t", TORCH_BOX(&crane::cuda::propagate_t_tensors));
  m.impl("spmm_max", TORCH_BOX(&crane::cuda::spmm_max_tensors));
  m.impl("sddmm", TORCH_BOX(&crane::cuda::sddmm_tensors));
  m.impl("propagate", TORCH_BOX(&crane::cuda::propagate_tensors));
}
