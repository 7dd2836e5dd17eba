// Deformable convolution for one instruction set: include inside its namespace, compiled for it, with
// TORCHDCN_VECTOR_BYTES and TORCHDCN_VECTOR_REGISTERS defined.

#include "simd.h"
#include "gemm.h"
#include "bilinear.h"
#include "layout.h"
#include "deform_conv2d_forward.h"
#include "deform_conv2d_data.h"
#include "deform_conv2d_weight.h"

// One strip of rows after another, even ones first: see deform_conv2d_data.h.
template <class T>
void run_data_pass(const DataPass<T>& pass, const std::vector<Image<Sum<T>>>& images, int32_t* reach) {
  const Problem& p = pass.args.problem;
  const int64_t per_image = 2 * p.deform_groups * p.taps() * p.Ho, count = int64_t(images.size());
  for (int64_t i = 0; i < count; ++i) find_reach(pass.args, images[i].n, reach + i * per_image);
  const int64_t height = strip_height(p), strips = (p.H + height - 1) / height;
  for (int64_t parity = 0; parity < 2; ++parity) {
    const int64_t mine = (strips + 1 - parity) / 2;
    for_each_task(count * mine, [&](int64_t task) {
      thread_local DataTile<Sum<T>> tile;
      const int64_t i = task / mine, row = (2 * (task % mine) + parity) * height;
      pass.strip(tile, images[i], row, std::min(row + height, p.H), reach + i * per_image);
    });
  }
}

template <class T>
void run_weight_pass(const WeightPass<T>& pass, const std::vector<Image<Sum<T>>>& images) {
  for_each_task(int64_t(pass.shares.size()), [&](int64_t i) {
    thread_local WeightTile<Sum<T>> tile;
    for (const Image<Sum<T>>& image : images) pass.add(tile, pass.shares[i], image);
    if (images.back().n == pass.args.problem.N - 1) pass.write(pass.shares[i]);
  });
}

template <class T>
void backward(const BackwardArguments<T>& args) {
  using A = Sum<T>;
  const Problem& p = args.problem;
  const bool data = args.grad_input || args.grad_offset || args.grad_mask;
  std::unique_ptr<DataPass<T>> data_pass(data ? new DataPass<T>(args) : nullptr);
  std::unique_ptr<WeightPass<T>> weight_pass(args.grad_weight ? new WeightPass<T>(args) : nullptr);
  Buffer<int32_t> reach;
  const auto run = [&](const std::vector<Image<A>>& images) {
    if (data_pass) run_data_pass(*data_pass, images, reach.data());
    if (weight_pass) run_weight_pass(*weight_pass, images);
  };

  const int64_t in = p.in_pixels(), out = p.out_pixels(), per_image = 2 * p.deform_groups * p.taps() * p.Ho;
  if constexpr (std::is_same_v<A, T>)
    if (args.input.channels_last() && args.grad_output.channels_last()) {
      std::vector<Image<A>> images;
      for (int64_t n = 0; n < p.N; ++n)
        images.push_back({n, args.grad_output.at(n), args.input.at(n), args.grad_input ? args.grad_input.at(n) : nullptr});
      if (args.grad_input) fill_zero(args.grad_input.data, p.N * in * p.C);
      reach.resize(p.N * per_image);
      return run(images);
    }

  // Other layouts and 16-bit features are converted image by image.
  Buffer<A> grad_output(out * p.Co), input(in * p.C), grad_input(args.grad_input ? in * p.C : 0);
  reach.resize(per_image);
  for (int64_t n = 0; n < p.N; ++n) {
    image_to_rows(args.grad_output, n, out, p.Co, grad_output.data());
    image_to_rows(args.input, n, in, p.C, input.data());
    if (args.grad_input) fill_zero(grad_input.data(), in * p.C);
    run({{n, grad_output.data(), input.data(), args.grad_input ? grad_input.data() : nullptr}});
    if (args.grad_input) image_from_rows(grad_input.data(), args.grad_input, n, in, p.C);
  }
}

template void forward(const ForwardArguments<float>&);
template void forward(const ForwardArguments<double>&);
template void forward(const ForwardArguments<BFloat16>&);
template void forward(const ForwardArguments<Half>&);
template void backward(const BackwardArguments<float>&);
template void backward(const BackwardArguments<double>&);
template void backward(const BackwardArguments<BFloat16>&);
template void backward(const BackwardArguments<Half>&);
