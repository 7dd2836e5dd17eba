// Deformable RoI pooling. Included inside a namespace that is compiled for one instruction set, after simd.h,
// bilinear.h and layout.h.
//
// Forward, and the gradients of offset and mask: a task is a box. The gradient of the input: a task owns some channels
// of an image's map and adds what all of the image's boxes give to them, in the boxes' order. No two tasks share memory,
// and no sum depends on how many threads there are.

#include "deform_roi_pool_bins.h"

constexpr int kRoiVectors = TORCHDCN_VECTOR_REGISTERS >= 32 ? 4 : 2;  // channels that are summed at a time

// Has a body take the channels: whole blocks of vectors, then vector by vector, then one channel at a time.
template <class A, class Body>
inline void for_channels(int64_t channels, Body&& body) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t c = 0;
  for (; c + kRoiVectors * lanes <= channels; c += kRoiVectors * lanes) body.template vectors<kRoiVectors>(c);
  for (; c + lanes <= channels; c += lanes) body.template vectors<1>(c);
  for (; c < channels; ++c) body.single(c);
}

// A bin's value: row = scale * sum of the pixels' channels.
template <class A, class T>
struct Pool {
  const Bin<A>& bin;
  const T* image;
  int64_t W, C;
  A scale;
  A* to;

  template <int n>
  void vectors(int64_t c) const {
    Vector<A> sum[n] = {};
    for (size_t i = 0; i < bin.rows.pixel.size(); ++i) {
      const T* const row = image + bin.rows.pixel[i] * W * C + c;
      for (size_t j = 0; j < bin.columns.pixel.size(); ++j) {
        const A w = bin.rows.weight[i] * bin.columns.weight[j];
        const T* const pixel = row + bin.columns.pixel[j] * C;
        TORCHDCN_UNROLL for (int v = 0; v < n; ++v) sum[v] += w * load(pixel + v * kLanes<A>);
      }
    }
    TORCHDCN_UNROLL for (int v = 0; v < n; ++v) store(to + c + v * kLanes<A>, scale * sum[v]);
  }
  void single(int64_t c) const {
    A sum = 0;
    for (size_t i = 0; i < bin.rows.pixel.size(); ++i)
      for (size_t j = 0; j < bin.columns.pixel.size(); ++j)
        sum += bin.rows.weight[i] * bin.columns.weight[j] *
               A(image[(bin.rows.pixel[i] * W + bin.columns.pixel[j]) * C + c]);
    to[c] = scale * sum;
  }
};

// The transposed step: adds a bin's gradient to its pixels.
template <class A>
struct Spread {
  const Bin<A>& bin;
  A* image;  // at the first of the channels
  int64_t W, C;
  A scale;
  const A* grad;

  template <int n>
  void vectors(int64_t c) const {
    Vector<A> g[n];
    TORCHDCN_UNROLL for (int v = 0; v < n; ++v) g[v] = scale * load(grad + c + v * kLanes<A>);
    for (size_t i = 0; i < bin.rows.pixel.size(); ++i) {
      A* const row = image + bin.rows.pixel[i] * W * C + c;
      for (size_t j = 0; j < bin.columns.pixel.size(); ++j) {
        const A w = bin.rows.weight[i] * bin.columns.weight[j];
        A* const pixel = row + bin.columns.pixel[j] * C;
        TORCHDCN_UNROLL for (int v = 0; v < n; ++v)
          store(pixel + v * kLanes<A>, load(pixel + v * kLanes<A>) + w * g[v]);
      }
    }
  }
  void single(int64_t c) const {
    const A g = scale * grad[c];
    for (size_t i = 0; i < bin.rows.pixel.size(); ++i)
      for (size_t j = 0; j < bin.columns.pixel.size(); ++j)
        image[(bin.rows.pixel[i] * W + bin.columns.pixel[j]) * C + c] +=
            bin.rows.weight[i] * bin.columns.weight[j] * g;
  }
};

// A bin's gradient times its value and its derivatives by the bin's position, summed over the channels.
template <class A, class T>
struct Dots {
  const Bin<A>& bin;
  const T* image;
  int64_t W, C;
  const A* grad;
  A sums[4] = {};  // of the value, by y, by x; the last is unused

  template <int n>
  void vectors(int64_t c) {
    Vector<A> value[n] = {}, by_y[n] = {}, by_x[n] = {};
    for (size_t i = 0; i < bin.rows.pixel.size(); ++i) {
      const T* const row = image + bin.rows.pixel[i] * W * C + c;
      const A wy = bin.rows.weight[i], sy = bin.rows.slope[i];
      for (size_t j = 0; j < bin.columns.pixel.size(); ++j) {
        const A wx = bin.columns.weight[j], w = wy * wx, y = sy * wx, x = wy * bin.columns.slope[j];
        const T* const pixel = row + bin.columns.pixel[j] * C;
        TORCHDCN_UNROLL for (int v = 0; v < n; ++v) {
          const Vector<A> p = load(pixel + v * kLanes<A>);
          value[v] += w * p;
          by_y[v] += y * p;
          by_x[v] += x * p;
        }
      }
    }
    Vector<A> dots[4] = {};
    TORCHDCN_UNROLL for (int v = 0; v < n; ++v) {
      const Vector<A> g = load(grad + c + v * kLanes<A>);
      dots[0] += g * value[v];
      dots[1] += g * by_y[v];
      dots[2] += g * by_x[v];
    }
    add_lanes<A>(dots, sums);
  }
  void single(int64_t c) {
    A value = 0, by_y = 0, by_x = 0;
    for (size_t i = 0; i < bin.rows.pixel.size(); ++i)
      for (size_t j = 0; j < bin.columns.pixel.size(); ++j) {
        const A p = A(image[(bin.rows.pixel[i] * W + bin.columns.pixel[j]) * C + c]);
        value += bin.rows.weight[i] * bin.columns.weight[j] * p;
        by_y += bin.rows.slope[i] * bin.columns.weight[j] * p;
        by_x += bin.rows.weight[i] * bin.columns.slope[j] * p;
      }
    sums[0] += grad[c] * value;
    sums[1] += grad[c] * by_y;
    sums[2] += grad[c] * by_x;
  }
};

// What a thread works on.
template <class A>
struct RoiTile {
  Samples<A> samples;
  Bin<A> bin;
  Buffer<A> rows;  // a box's bins, channels-last
};

// One box's output.
template <class T>
void roi_box(const RoiForwardArguments<T>& args, const T* image, int64_t k) {
  using A = Sum<T>;
  const RoiProblem<A>& p = args.problem;
  RoiTile<A>& tile = thread_scratch<RoiTile<A>>();
  constexpr bool same = std::is_same_v<A, T>;
  const bool direct = same && args.output.channels_last();
  A* rows;
  if constexpr (same) rows = args.output.at(k);
  if (!direct) {
    tile.rows.resize(p.bins() * p.C);
    rows = tile.rows.data();
  }
  for (int64_t b = 0; b < p.bins(); ++b) {
    tile.bin.place(tile.samples, p, k, b);
    const A scale = tile.bin.nan ? std::numeric_limits<A>::quiet_NaN() : tile.bin.mask(p, k, b) * tile.bin.share;
    for_channels<A>(p.C, Pool<A, T>{tile.bin, image, p.W, p.C, scale, rows + b * p.C});
  }
  if (!direct) from_rows(rows, p.C, args.output, k, 0, p.C, 0, p.bins());
}

template <class T>
void roi_forward(const RoiForwardArguments<T>& args) {
  const RoiProblem<Sum<T>>& p = args.problem;
  if (args.input.channels_last()) {
    for_each_task(p.K, [&](int64_t k) { roi_box(args, args.input.at(p.boxes[k].image), k); });
    return;
  }
  // Another layout is converted image by image: a whole batch at once would cost its size in memory.
  Buffer<T> image;
  for (int64_t n = 0; n < p.N; ++n) {
    const std::vector<int64_t>& boxes = p.of_image[n];
    if (boxes.empty()) continue;
    image.resize(p.pixels() * p.C);
    image_to_rows(args.input, n, p.pixels(), p.C, image.data());
    for_each_task(int64_t(boxes.size()), [&](int64_t i) { roi_box(args, image.data(), boxes[i]); });
  }
}

// Channels [channel, channel + count) of a box's grad_output, as a row for each bin, in the tile if need be.
template <class T>
const Sum<T>* grad_rows(const RoiBackwardArguments<T>& args, RoiTile<Sum<T>>& tile, int64_t k, int64_t channel,
                        int64_t count, int64_t& stride) {
  const RoiProblem<Sum<T>>& p = args.problem;
  if constexpr (std::is_same_v<Sum<T>, T>)
    if (args.grad_output.channels_last()) {
      stride = p.C;
      return args.grad_output.at(k) + channel;
    }
  View<const T> from = args.grad_output;
  from.data += channel * from.channel;
  tile.rows.resize(p.bins() * count);
  to_rows(from, k, 0, p.bins(), count, tile.rows.data());
  stride = count;
  return tile.rows.data();
}

// One box's gradients of offset and mask.
template <class T, class P>
void roi_box_gradients(const RoiBackwardArguments<T>& args, const P* image, int64_t k) {
  using A = Sum<T>;
  const RoiProblem<A>& p = args.problem;
  const RoiBox<A>& box = p.boxes[k];
  RoiTile<A>& tile = thread_scratch<RoiTile<A>>();
  int64_t stride;
  const A* const rows = grad_rows(args, tile, k, 0, p.C, stride);
  for (int64_t b = 0; b < p.bins(); ++b) {
    tile.bin.place(tile.samples, p, k, b);
    Dots<A, P> dots{tile.bin, image, p.W, p.C, rows + b * stride};
    for_channels<A>(p.C, dots);
    const A nothing = tile.bin.nan ? std::numeric_limits<A>::quiet_NaN() : A(0), share = tile.bin.share;
    if (args.grad_mask) args.grad_mask[k * p.bins() + b] = share * dots.sums[0] + nothing;
    if (!args.grad_offset) continue;
    A* const to = args.grad_offset + 2 * k * p.bins() + b;  // x, then y
    const A scale = tile.bin.mask(p, k, b) * share * p.gamma;
    to[0] = scale * box.width * dots.sums[2] + nothing;
    to[p.bins()] = scale * box.height * dots.sums[1] + nothing;
  }
}

// Adds to some channels of an image's gradient what its boxes give.
template <class T>
void roi_spread(const RoiBackwardArguments<T>& args, Sum<T>* image, int64_t n, int64_t channel, int64_t count) {
  using A = Sum<T>;
  const RoiProblem<A>& p = args.problem;
  RoiTile<A>& tile = thread_scratch<RoiTile<A>>();
  for (int64_t k : p.of_image[n]) {
    int64_t stride;
    const A* const rows = grad_rows(args, tile, k, channel, count, stride);
    for (int64_t b = 0; b < p.bins(); ++b) {
      tile.bin.place(tile.samples, p, k, b);
      const A scale = tile.bin.mask(p, k, b) * tile.bin.share;
      for_channels<A>(count, Spread<A>{tile.bin, image + channel, p.W, p.C, scale, rows + b * stride});
    }
  }
}

// Channels that a task owns: whole cache lines, a few tasks for each thread. A sum does not depend on it.
template <class A>
int64_t owned_channels(const RoiProblem<A>& p, int64_t images) {
  constexpr int64_t line = 64 / sizeof(A);
  const int64_t tasks = std::max<int64_t>(1, 2 * torch::stable::get_num_threads() / images);
  return std::max(line, (p.C + tasks * line - 1) / (tasks * line) * line);
}

template <class T>
void roi_backward(const RoiBackwardArguments<T>& args) {
  using A = Sum<T>;
  const RoiProblem<A>& p = args.problem;
  const bool by_box = args.grad_offset || args.grad_mask;
  if constexpr (std::is_same_v<A, T>)
    if (args.input.channels_last()) {
      if (by_box)
        for_each_task(p.K, [&](int64_t k) { roi_box_gradients(args, args.input.at(p.boxes[k].image), k); });
      if (!args.grad_input) return;
      fill_zero(args.grad_input.data, p.N * p.pixels() * p.C);
      const int64_t channels = owned_channels(p, p.N), shares = (p.C + channels - 1) / channels;
      for_each_task(p.N * shares, [&](int64_t i) {
        const int64_t n = i / shares, c = i % shares * channels;
        roi_spread(args, args.grad_input.at(n), n, c, std::min(channels, p.C - c));
      });
      return;
    }

  // Other layouts and 16-bit features are converted image by image.
  Buffer<A> image(p.pixels() * p.C);
  for (int64_t n = 0; n < p.N; ++n) {
    const std::vector<int64_t>& boxes = p.of_image[n];
    if (by_box && !boxes.empty()) {
      image_to_rows(args.input, n, p.pixels(), p.C, image.data());
      for_each_task(int64_t(boxes.size()), [&](int64_t i) { roi_box_gradients(args, image.data(), boxes[i]); });
    }
    if (!args.grad_input) continue;
    fill_zero(image.data(), p.pixels() * p.C);
    const int64_t channels = owned_channels(p, 1), shares = (p.C + channels - 1) / channels;
    for_each_task(shares, [&](int64_t i) {
      roi_spread(args, image.data(), n, i * channels, std::min(channels, p.C - i * channels));
    });
    image_from_rows(image.data(), args.grad_input, n, p.pixels(), p.C);
  }
}

template void roi_forward(const RoiForwardArguments<float>&);
template void roi_forward(const RoiForwardArguments<double>&);
template void roi_forward(const RoiForwardArguments<BFloat16>&);
template void roi_forward(const RoiForwardArguments<Half>&);
template void roi_backward(const RoiBackwardArguments<float>&);
template void roi_backward(const RoiBackwardArguments<double>&);
template void roi_backward(const RoiBackwardArguments<BFloat16>&);
template void roi_backward(const RoiBackwardArguments<Half>&);
