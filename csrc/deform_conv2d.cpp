// The operators as torch sees them: tensors to views, and the kernels of the best instruction set there is.
// Python has checked shapes, dtypes and devices, and allocated the outputs (src/torchdcn/ops/deform_conv2d/).
#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchdcn {

void* aligned_memory(size_t bytes) {
  constexpr size_t line = 64, huge = size_t(2) << 20;
  const size_t alignment = bytes >= huge ? huge : line;
  const size_t whole = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
  void* memory = std::aligned_alloc(alignment, whole);
  if (!memory) throw OutOfMemory(bytes);
#if defined(__linux__)
  if (bytes >= huge) madvise(memory, whole, MADV_HUGEPAGE);  // if it can't, nothing is lost
#endif
  return memory;
}

namespace {

template <class A>
Field<A> field(const std::optional<Tensor>& t) {
  using Kind = typename Field<A>::Kind;
  if (!t) return {Kind::sum, {nullptr, 0, 0, 0}};
  const ScalarType dtype = t->scalar_type();
  const Kind kind = dtype == ScalarType::BFloat16 ? Kind::bfloat16 : dtype == ScalarType::Half ? Kind::half : Kind::sum;
  return {kind, view<char>(*t)};
}

Problem problem(const Tensor& input, const Tensor& weight, const Tensor& offset, const Numbers& stride,
                const Numbers& padding, const Numbers& dilation, int64_t groups, int64_t deform_groups) {
  const auto in = input.sizes(), w = weight.sizes(), out = offset.sizes();
  return {in[0],     in[1],     in[2],      in[3],      w[0],        w[2],        w[3],   out[2],
          out[3],    stride[0], stride[1],  padding[0], padding[1],  dilation[0], dilation[1], groups, deform_groups};
}

void deform_conv2d(Tensor input, Tensor offset, std::optional<Tensor> mask, Tensor weight, Numbers stride,
                   Numbers padding, Numbers dilation, int64_t groups, int64_t deform_groups, Tensor output) {
  const Problem p = problem(input, weight, offset, stride, padding, dilation, groups, deform_groups);
  if (p.N == 0) return;
  for_dtype(input, [&](auto like) {
    using T = decltype(like);
    const ForwardArguments<T> args{p,
                                   view<const T>(input),
                                   field<Sum<T>>(offset),
                                   field<Sum<T>>(mask),
                                   static_cast<const T*>(weight.data_ptr()),
                                   view<T>(output)};
#if defined(TORCHDCN_AVX512_BF16)
    if constexpr (std::is_same_v<T, BFloat16>)
      if (best_isa() == Isa::avx512_bf16) return avx512_bf16::forward(args);
#endif
    TORCHDCN_DISPATCH(forward(args));
  });
}

void deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, std::optional<Tensor> mask, Tensor weight,
                            Numbers stride, Numbers padding, Numbers dilation, int64_t groups, int64_t deform_groups,
                            std::optional<Tensor> grad_input, std::optional<Tensor> grad_offset,
                            std::optional<Tensor> grad_mask, std::optional<Tensor> grad_weight) {
  const Problem p = problem(input, weight, offset, stride, padding, dilation, groups, deform_groups);
  for_dtype(input, [&](auto like) {
    using T = decltype(like);
    T* const weight_sums = grad_weight ? static_cast<T*>(grad_weight->data_ptr()) : nullptr;
    if (p.N == 0) {
      if (weight_sums) std::fill_n(weight_sums, weight.numel(), T(0));
      return;
    }
    const BackwardArguments<T> args{p,
                                    view<const T>(grad_output),
                                    view<const T>(input),
                                    field<Sum<T>>(offset),
                                    field<Sum<T>>(mask),
                                    static_cast<const T*>(weight.data_ptr()),
                                    view<T>(grad_input),
                                    field<Sum<T>>(grad_offset),
                                    field<Sum<T>>(grad_mask),
                                    weight_sums};
    TORCHDCN_DISPATCH(backward(args));
  });
}

int64_t isa() { return int64_t(best_isa()); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchdcn, CompositeExplicitAutograd, m) { m.impl("_cpp_isa", TORCH_BOX(&isa)); }

STABLE_TORCH_LIBRARY_IMPL(torchdcn, CPU, m) {
  m.impl("_deform_conv2d_cpp", boxed<TORCH_BOX(&deform_conv2d)>);
  m.impl("_deform_conv2d_backward_cpp", boxed<TORCH_BOX(&deform_conv2d_backward)>);
}

}  // namespace torchdcn
