// The kernels for x86-64 with AVX2 and FMA. Only what is ours is compiled for it: the headers above are not.
#include "deform_roi_pool.h"
#include "problem.h"

#if defined(__x86_64__)
#define TORCHDCN_VECTOR_REGISTERS 16
#define TORCHDCN_VECTOR_BYTES 32

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace torchdcn::avx2 {
#include "deform_conv2d_kernels.h"
#include "deform_roi_pool_kernels.h"
}  // namespace torchdcn::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
