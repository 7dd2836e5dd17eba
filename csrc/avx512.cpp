// The kernels for x86-64 with AVX-512 (F, VL, BW, DQ). Only what is ours is compiled for it: the headers above are not.
#include "deform_roi_pool.h"
#include "problem.h"

#if defined(__x86_64__)
#define TORCHDCN_VECTOR_REGISTERS 32
#define TORCHDCN_VECTOR_BYTES 64

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

namespace torchdcn::avx512 {
#include "deform_conv2d_kernels.h"
#include "deform_roi_pool_kernels.h"
}  // namespace torchdcn::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
