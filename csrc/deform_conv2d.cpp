// The operators as torch sees them: tensors to views, and the kernels of the best instruction set there is.
// Python has checked shapes, dtypes and devices, and allocated the outputs (src/torchdcn/ops/deform_conv2d.py).
#include "problem.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchdcn {

void* aligned_memory(size_t bytes) {
  constexpr size_t line = 64, huge = size_t(2) << 20;
  const size_t alignment = bytes >= huge ? huge : line;
  const size_t whole = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
  void* memory = std::aligned_alloc(alignment, whole);
  if (!memory) throw std::bad_alloc();
#if defined(__linux__)
  if (bytes >= huge) madvise(memory, whole, MADV_HUGEPAGE);  // if it can't, nothing is lost
#endif
  return memory;
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Numbers = std::vector<int64_t>;

enum class Isa { portable, avx2, avx512 };

// What this CPU has, or what TORCHDCN_ISA asks for, if it has that too.
Isa best_isa() {
  static const Isa best = [] {
    Isa found = Isa::portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = Isa::avx2;
    if (found == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
      found = Isa::avx512;
#endif
    const char* asked = std::getenv("TORCHDCN_ISA");
    if (asked && !std::strcmp(asked, "portable")) found = Isa::portable;
    if (asked && !std::strcmp(asked, "avx2")) found = std::min(found, Isa::avx2);
    return found;
  }();
  return best;
}

// A dense tensor [N, C, H, W] is contiguous or channels-last. One of a single channel is both; then it is channels-last.
template <class T>
View<T> view(const Tensor& t) {
  const auto size = t.sizes();
  const int64_t C = size[1], P = size[2] * size[3];
  const bool last = C == 1 || !t.is_contiguous();
  return {static_cast<T*>(t.data_ptr()), C * P, last ? 1 : P, last ? C : 1};
}

template <class T>
View<T> view(const std::optional<Tensor>& t) {
  return t ? view<T>(*t) : View<T>{nullptr, 0, 0, 0};
}

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

// Calls function<T>() for the dtype of the features.
template <class Function>
void for_dtype(const Tensor& input, Function&& function) {
  switch (input.scalar_type()) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(BFloat16{});
    case ScalarType::Half: return function(Half{});
    default: STD_TORCH_CHECK(false, "torchdcn: no kernel for this dtype");
  }
}

#if defined(__x86_64__)
#define TORCHDCN_DISPATCH(call)                      \
  switch (best_isa()) {                              \
    case Isa::avx512: return avx512::call;           \
    case Isa::avx2: return avx2::call;               \
    default: return portable::call;                  \
  }
#else
#define TORCHDCN_DISPATCH(call) return portable::call;
#endif

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
  m.impl("_deform_conv2d_cpp", TORCH_BOX(&deform_conv2d));
  m.impl("_deform_conv2d_backward_cpp", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace torchdcn
