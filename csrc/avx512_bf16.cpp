// The forward pass of bfloat16 for x86-64 with AVX512-BF16; all else there is avx512.cpp's. Only what is ours is compiled
// for it: the headers above are not.
#include "problem.h"

#if defined(TORCHDCN_AVX512_BF16)
#include <immintrin.h>

#define TORCHDCN_VECTOR_REGISTERS 32
#define TORCHDCN_VECTOR_BYTES 64

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

namespace torchdcn::avx512_bf16 {
#include "simd.h"
#include "gemm.h"
#include "bfloat16.h"
#include "narrow.h"
#include "bilinear.h"
#include "layout.h"
#include "deform_conv2d_forward.h"

template void forward(const ForwardArguments<BFloat16>&);
}  // namespace torchdcn::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
