// Deformable convolution for one instruction set: include inside its namespace, compiled for it, with
// TORCHDCN_VECTOR_BYTES and TORCHDCN_VECTOR_REGISTERS defined.

#include "simd.h"
#include "gemm.h"
#include "narrow.h"
#include "bilinear.h"
#include "layout.h"
#include "deform_conv2d_forward.h"
#include "deform_conv2d_data.h"
#include "deform_conv2d_weight.h"

// Everything that some images give, as one queue of tasks, so that no thread waits while there is work: first the shares
// of the weight, which are the largest, then the strips of the data, even ones before odd ones. An odd strip waits for
// its two neighbours. They come earlier in the queue, so another thread has them in hand if they aren't done, or one of
// the tasks has failed.
template <class T>
void run_passes(const DataPass<T>* data, const WeightPass<T>* weight, const Problem& p,
                const std::vector<Image<Sum<T>>>& images, int32_t* reach) {
  using A = Sum<T>;
  const int64_t count = int64_t(images.size()), shares = weight ? int64_t(weight->shares.size()) : 0;
  const int64_t height = strip_height(p), strips = data ? (p.H + height - 1) / height : 0, even = (strips + 1) / 2;
  const int64_t per_image = 2 * p.deform_groups * p.taps() * p.Ho;
  const std::unique_ptr<std::atomic<bool>[]> done(new std::atomic<bool>[size_t(count * strips)]());
  Tasks tasks;

  const auto run_strip = [&](int64_t i, int64_t strip) {
    std::atomic<bool>* const mine = done.get() + i * strips;
    if (strip % 2)
      for (int64_t s : {strip - 1, strip + 1})
        if (s < strips && !tasks.wait(mine[s])) return;
    data->strip(thread_scratch<DataTile<A>>(), images[i], strip * height, std::min((strip + 1) * height, p.H),
                reach + i * per_image);
    mine[strip].store(true, std::memory_order_release);
  };
  const auto run_share = [&](const Share& share) {
    WeightTile<A>& tile = thread_scratch<WeightTile<A>>();
    for (const Image<A>& image : images) weight->add(tile, share, image);
  };

  if (data)
    for (int64_t i = 0; i < count; ++i) find_reach(data->args, images[i].n, reach + i * per_image);
  tasks.run(shares + count * strips, [&](int64_t task) {
    if (task < shares) return run_share(weight->shares[task]);
    task -= shares;
    if (task < count * even) return run_strip(task / even, task % even * 2);
    task -= count * even;
    run_strip(task / (strips - even), task % (strips - even) * 2 + 1);
  });
}

template <class T>
void backward(const BackwardArguments<T>& given) {
  using A = Sum<T>;
  BackwardArguments<T> args = given;
  const int64_t narrow = is_narrow<A>(given.problem) ? given.problem.group_in() : 0;
  if (narrow) args.problem.groups = 1;  // that is how the columns are gathered
  const Problem& p = args.problem;
  const bool data = args.grad_input || args.grad_offset || args.grad_mask;
  std::unique_ptr<DataPass<T>> data_pass(data ? new DataPass<T>(args, narrow) : nullptr);
  std::unique_ptr<WeightPass<T>> weight_pass(args.grad_weight ? new WeightPass<T>(args, narrow) : nullptr);
  Buffer<int32_t> reach;
  const auto run = [&](const std::vector<Image<A>>& images) {
    run_passes(data_pass.get(), weight_pass.get(), p, images, reach.data());
    if (weight_pass && images.back().n == p.N - 1) weight_pass->write();
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
