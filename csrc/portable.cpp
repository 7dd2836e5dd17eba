// The kernels for any CPU: SSE2 on x86-64, NEON on ARM, by the compiler's vector types.
#include "deform_roi_pool.h"
#include "problem.h"

#if defined(__aarch64__)
#define TORCHDCN_VECTOR_REGISTERS 32
#else
#define TORCHDCN_VECTOR_REGISTERS 16
#endif
#define TORCHDCN_VECTOR_BYTES 16

namespace torchdcn::portable {
#include "deform_conv2d_kernels.h"
#include "deform_roi_pool_kernels.h"
}  // namespace torchdcn::portable
