// The operators as torch sees them: from tensors to views, and to the kernels of the best instruction set there is.
#pragma once

#include "problem.h"

namespace torchdcn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Numbers = std::vector<int64_t>;

enum class Isa { portable, avx2, avx512, avx512_bf16 };

// What this CPU has, or what TORCHDCN_ISA asks for, if it has that too.
inline Isa best_isa() {
  static const Isa best = [] {
    Isa found = Isa::portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = Isa::avx2;
    if (found == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
      found = Isa::avx512;
#if defined(TORCHDCN_AVX512_BF16)
    if (found == Isa::avx512 && __builtin_cpu_supports("avx512bf16")) found = Isa::avx512_bf16;
#endif
#endif
    const char* asked = std::getenv("TORCHDCN_ISA");
    if (asked && !std::strcmp(asked, "portable")) found = Isa::portable;
    if (asked && !std::strcmp(asked, "avx2")) found = std::min(found, Isa::avx2);
    if (asked && !std::strcmp(asked, "avx512")) found = std::min(found, Isa::avx512);
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

// An operator as torch calls it. A vector that found no room throws a bare std::bad_alloc, which says nothing in Python.
template <auto* function>
void boxed(StableIValue* stack, uint64_t arguments, uint64_t outputs) {
  try {
    function(stack, arguments, outputs);
  } catch (const OutOfMemory&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw OutOfMemory();
  }
}

#if defined(__x86_64__)
#define TORCHDCN_DISPATCH(call)                      \
  switch (best_isa()) {                              \
    case Isa::avx512_bf16:                           \
    case Isa::avx512: return avx512::call;           \
    case Isa::avx2: return avx2::call;               \
    default: return portable::call;                  \
  }
#else
#define TORCHDCN_DISPATCH(call) return portable::call;
#endif

}  // namespace torchdcn
