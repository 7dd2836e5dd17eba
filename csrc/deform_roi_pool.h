// What one call of deformable RoI pooling is made of: its sizes, its boxes, and views of its tensors.
#pragma once

#include "problem.h"

namespace torchdcn {

// A box on its image's map. Lengths in pixels, positions with the first pixel's centre at 0.
template <class A>
struct RoiBox {
  int64_t image;
  A top, left, height, width;
  int64_t down, across;  // samples of a bin along each axis
};

template <class A>
struct RoiProblem {
  int64_t N, C, H, W;  // input
  int64_t K, ph, pw;   // output [K, C, ph, pw]
  A gamma;
  std::vector<RoiBox<A>> boxes;
  std::vector<std::vector<int64_t>> of_image;  // the boxes of each image, in their order
  const A *offset, *mask;                      // contiguous; null where absent

  int64_t bins() const { return ph * pw; }
  int64_t pixels() const { return H * W; }
};

template <class T>
struct RoiForwardArguments {
  RoiProblem<Sum<T>> problem;
  View<const T> input;
  View<T> output;
};

template <class T>
struct RoiBackwardArguments {
  RoiProblem<Sum<T>> problem;
  View<const T> grad_output, input;
  View<T> grad_input;                // this and those below: absent where not wanted
  Sum<T>*grad_offset, *grad_mask;  // contiguous
};

// The kernels, compiled once per instruction set and chosen at run time (deform_roi_pool.cpp).
#define TORCHDCN_DECLARE_ROI(isa)                                        \
  namespace isa {                                                        \
  template <class T> void roi_forward(const RoiForwardArguments<T>&);   \
  template <class T> void roi_backward(const RoiBackwardArguments<T>&); \
  }
TORCHDCN_DECLARE_ROI(portable)
#if defined(__x86_64__)
TORCHDCN_DECLARE_ROI(avx2)
TORCHDCN_DECLARE_ROI(avx512)
#endif

}  // namespace torchdcn
