// The gradient of the weight. Included inside a namespace that is compiled for one instruction set.
//
// A task owns some input channels of one group, and some output channels. Tile by tile it gathers the columns of its
// input channels once more, tap by tap, and multiplies: nothing is shared between tasks, nothing summed afterwards.

template <class A>
struct WeightTile {
  Buffer<A> columns;
  Samples<A> samples;
  Corners<A, A> corners;
};

// A task: one panel of a group's input channels, and some of its output channels.
struct Share {
  int64_t group, channel, channels, out, outs;
};

template <class T>
struct WeightPass {
  using A = Sum<T>;
  const BackwardArguments<T>& args;
  std::vector<Segment> parts;
  std::vector<Share> shares;
  Buffer<A> sums, nowhere;  // sums: per group and panel [tap, output channel, panel]

  explicit WeightPass(const BackwardArguments<T>& args);
  void add(WeightTile<A>& tile, const Share& share, const Image<A>& image) const;
  void gather(WeightTile<A>& tile, const Share& share, const Image<A>& image, int64_t tap, int64_t first, int64_t count,
              int64_t width) const;
  void write(const Share& share) const;
  A* sums_of(const Share& share, int64_t tap) const;
  int64_t width(const Share& share) const { return padded<A>(share.channels); }
};

template <class T>
WeightPass<T>::WeightPass(const BackwardArguments<T>& args)
    : args(args), parts(segments(args.problem)), nowhere(args.problem.C) {
  const Problem& p = args.problem;
  const int64_t panels = (p.group_in() + kPanel<A> - 1) / kPanel<A>, threads = torch::stable::get_num_threads();
  // Every share gathers its columns anew, so no more shares than keep the threads busy.
  const int64_t splits = std::max<int64_t>(1, (threads + p.groups * panels - 1) / (p.groups * panels));
  const int64_t outs = ((p.group_out() + splits - 1) / splits + kRows - 1) / kRows * kRows;
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t c = 0; c < p.group_in(); c += kPanel<A>)
      for (int64_t o = 0; o < p.group_out(); o += outs)
        shares.push_back({g, c, std::min(kPanel<A>, p.group_in() - c), o, std::min(outs, p.group_out() - o)});
  sums.resize(p.groups * padded<A>(p.group_in()) * p.group_out() * p.taps());
  std::fill_n(nowhere.data(), p.C, A(0));
}

template <class T>
Sum<T>* WeightPass<T>::sums_of(const Share& share, int64_t tap) const {
  const Problem& p = args.problem;
  const int64_t panel = (share.group * padded<A>(p.group_in()) + share.channel) * p.group_out() * p.taps();
  return sums.data() + panel + (tap * p.group_out() + share.out) * width(share);
}

template <class T>
void WeightPass<T>::gather(WeightTile<A>& tile, const Share& share, const Image<A>& image, int64_t tap, int64_t first,
                           int64_t count, int64_t width) const {
  const Problem& p = args.problem;
  int64_t planned = -1;
  for (const Segment& s : parts) {
    if (s.group != share.group) continue;
    const int64_t begin = std::max(s.first, share.channel), end = std::min(s.first + s.count, share.channel + share.channels);
    if (begin >= end) continue;
    if (s.deform_group != planned) {
      planned = s.deform_group;
      place_samples(p, args.offset, args.mask, image.n, planned, tap, first, count, tile.samples);
      tile.corners.plan(tile.samples, count, image.input, nowhere.data(), p.H, p.W, p.C);
    }
    tile.corners.gather(count, s.group * p.group_in() + begin, end - begin, tile.columns.data() + begin - share.channel, width);
  }
}

// Adds what one image gives.
template <class T>
void WeightPass<T>::add(WeightTile<A>& tile, const Share& share, const Image<A>& image) const {
  const Problem& p = args.problem;
  const int64_t P = p.out_pixels(), panel = width(share);
  tile.columns.resize(kSamples * kPanel<A>);
  for (int64_t first = 0; first < P; first += kSamples) {
    const int64_t count = std::min(kSamples, P - first);
    const ByDepth<A> grad{image.grad_output + first * p.Co + share.group * p.group_out() + share.out, p.Co};
    for (int64_t tap = 0; tap < p.taps(); ++tap) {
      gather(tile, share, image, tap, first, count, panel);
      multiply_panel(panel, grad, share.outs, count, tile.columns.data(), tile.columns.data(), Tile<A>{sums_of(share, tap), panel},
                     image.n > 0 || first > 0);
    }
  }
}

template <class T>
void WeightPass<T>::write(const Share& share) const {
  const Problem& p = args.problem;
  const int64_t K = p.taps(), panel = width(share);
  for (int64_t o = 0; o < share.outs; ++o) {
    T* to = args.grad_weight + ((share.group * p.group_out() + share.out + o) * p.group_in() + share.channel) * K;
    for (int64_t k = 0; k < K; ++k) {
      const A* from = sums_of(share, k) + o * panel;
      for (int64_t c = 0; c < share.channels; ++c) to[c * K + k] = T(from[c]);
    }
  }
}
