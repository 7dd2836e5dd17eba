// What one call of deformable convolution is made of: its sizes, and views of its tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "parallel.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace torchdcn {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Features are stored as T and summed as Sum<T>.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A tensor [N, C, H, W] in either dense layout: element (n, c, pixel), pixel = y * W + x.
template <class T>
struct View {
  T* data;  // null where the tensor is absent
  int64_t image, channel, pixel;  // strides

  T* at(int64_t n) const { return data + n * image; }
  bool channels_last() const { return channel == 1; }
  explicit operator bool() const { return data != nullptr; }
};

// An offset or a mask, or the gradient of one: stored as A, or in 16 bits beside 16-bit features.
template <class A>
struct Field {
  enum class Kind { sum, bfloat16, half } kind;
  View<char> bytes;  // strides count elements

  explicit operator bool() const { return bool(bytes); }

  // `count` neighbouring pixels of one channel.
  void read(int64_t n, int64_t channel, int64_t first, int64_t count, A* to) const {
    const int64_t start = n * bytes.image + channel * bytes.channel + first * bytes.pixel;
    const auto copy = [&](const auto* from) {
      for (int64_t i = 0; i < count; ++i) to[i] = A(from[start + i * bytes.pixel]);
    };
    switch (kind) {
      case Kind::bfloat16: return copy(reinterpret_cast<const BFloat16*>(bytes.data));
      case Kind::half: return copy(reinterpret_cast<const Half*>(bytes.data));
      default: return copy(reinterpret_cast<const A*>(bytes.data));
    }
  }

  // The given pixels of one channel.
  void scatter(int64_t n, int64_t channel, const int64_t* pixels, int64_t count, const A* from) const {
    const int64_t start = n * bytes.image + channel * bytes.channel;
    const auto copy = [&](auto* to) {
      using Stored = std::remove_pointer_t<decltype(to)>;
      for (int64_t i = 0; i < count; ++i) to[start + pixels[i] * bytes.pixel] = stored<Stored>(from[i]);
    };
    switch (kind) {
      case Kind::bfloat16: return copy(reinterpret_cast<BFloat16*>(bytes.data));
      case Kind::half: return copy(reinterpret_cast<Half*>(bytes.data));
      default: return copy(reinterpret_cast<A*>(bytes.data));
    }
  }

 private:
  template <class Stored>
  static Stored stored(A value) {
    if constexpr (std::is_same_v<Stored, A>)
      return value;
    else
      return Stored(float(value));
  }
};

struct Problem {
  int64_t N, C, H, W;  // input
  int64_t Co, kh, kw;  // weight [Co, C / groups, kh, kw]
  int64_t Ho, Wo;      // output
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups, deform_groups;

  int64_t taps() const { return kh * kw; }
  int64_t in_pixels() const { return H * W; }
  int64_t out_pixels() const { return Ho * Wo; }
  int64_t group_in() const { return C / groups; }
  int64_t group_out() const { return Co / groups; }
  int64_t deform_channels() const { return C / deform_groups; }
};

// Neighbouring input channels that share a group of the convolution and a deformable group.
struct Segment {
  int64_t channel, count;
  int64_t group, first;  // the convolution's group, and where in it the segment starts
  int64_t deform_group;
  int64_t packed_at;  // where its weights lie among those of a tap (deform_conv2d_data.h)
};

inline std::vector<Segment> segments(const Problem& p) {
  std::vector<Segment> all;
  for (int64_t c = 0; c < p.C;) {
    const int64_t g = c / p.group_in(), d = c / p.deform_channels();
    const int64_t end = std::min((g + 1) * p.group_in(), (d + 1) * p.deform_channels());
    all.push_back({c, end - c, g, c - g * p.group_in(), d, 0});
    c = end;
  }
  return all;
}

template <class T>
struct ForwardArguments {
  Problem problem;
  View<const T> input;
  Field<Sum<T>> offset, mask;
  const T* weight;
  View<T> output;
};

template <class T>
struct BackwardArguments {
  Problem problem;
  View<const T> grad_output, input;
  Field<Sum<T>> offset, mask;
  const T* weight;
  View<T> grad_input;  // this and those below: absent where not wanted
  Field<Sum<T>> grad_offset, grad_mask;
  T* grad_weight;
};

// The kernels, compiled once per instruction set and chosen at run time (tensors.h).
#define TORCHDCN_DECLARE(isa)                                   \
  namespace isa {                                               \
  template <class T> void forward(const ForwardArguments<T>&);   \
  template <class T> void backward(const BackwardArguments<T>&); \
  }
TORCHDCN_DECLARE(portable)
#if defined(__x86_64__)
TORCHDCN_DECLARE(avx2)
TORCHDCN_DECLARE(avx512)
#if __has_include(<avx512bf16intrin.h>)
#define TORCHDCN_AVX512_BF16
namespace avx512_bf16 {
template <class T> void forward(const ForwardArguments<T>&);  // T is bfloat16
}
#endif
#endif

}  // namespace torchdcn
