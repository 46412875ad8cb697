// From torch's tensors to the CUDA kernels' raw pointers.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstddef>

#include "common/tensors.h"

namespace crane::cuda {

// Makes the device of a tensor the current one, and holds the stream that torch's own operators would use there.
class Queue {
 public:
  explicit Queue(const Tensor& x)
      : guard_(x.get_device_index()),
        stream_(torch::stable::accelerator::getCurrentStream(x.get_device_index()).nativeHandle()) {}

  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

inline void check_vector(const Tensor& t, ScalarType dtype, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index() && t.dim() == 1 && t.is_contiguous() &&
                      t.scalar_type() == dtype,
                  name, ": expected a contiguous vector of the operator's dtype on the device of x");
}

// Device memory for the time of a call: torch keeps it from others until the stream is done with it.
inline Tensor device_bytes(const Tensor& x, size_t n) {
  return torch::stable::new_empty(x, {static_cast<int64_t>(n)}, ScalarType::Byte);
}

// `error` is what a launch returned.
inline void check_launch(const char* error) { STD_TORCH_CHECK(error == nullptr, "CUDA: ", error); }

}  // namespace crane::cuda
