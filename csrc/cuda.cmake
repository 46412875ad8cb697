# The CUDA kernels, in a library of their own: the CPU's loads with a torch that has no CUDA. Included where setup.py
# found nvcc and a CUDA build of torch, with CMAKE_CUDA_COMPILER and CMAKE_CUDA_ARCHITECTURES. CUDA's runtime is linked
# in: it works on torch's streams whichever version of the runtime torch itself loads.
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_COMPILER_LAUNCHER ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/build_cuda.py) # keeps what ptxas reports
enable_language(CUDA)

add_library(_ops_cuda MODULE
            csrc/registration/ops_cuda.cpp csrc/spmm/spmm_cuda.cpp csrc/propagate/propagate_cuda.cpp
            csrc/propagate/propagate_cuda.cu csrc/spmm/mark_cuda.cu csrc/spmm/rows_cuda.cu
            csrc/spmm/sddmm_cuda.cu csrc/spmm/spmm_cuda.cu)
target_compile_options(_ops_cuda PRIVATE -O3 $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>
                                         $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
target_compile_definitions(_ops_cuda PRIVATE TORCH_TARGET_VERSION=0x020d000000000000)
target_include_directories(_ops_cuda PRIVATE csrc)
target_include_directories(_ops_cuda SYSTEM PRIVATE ${TORCH_INCLUDE})
target_link_libraries(_ops_cuda PRIVATE ${TORCH_LIB}/libtorch_cpu.so)
set_target_properties(_ops_cuda PROPERTIES PREFIX "" CUDA_RUNTIME_LIBRARY Static)
install(TARGETS _ops_cuda LIBRARY DESTINATION .)
