// The gradient of the weight. Included inside a namespace that is compiled for one instruction set.
//
// A task owns some input channels and taps of one group. Tile by tile it gathers their columns once more and multiplies:
// nothing is shared between tasks, nothing summed afterwards.

template <class A>
struct WeightTile {
  Buffer<A> columns;  // panel by panel, sample by sample
  Samples<A> samples;
  Corners<A, A> corners;
};

// A task: panels of a group's input channels, taps, output channels.
struct Share {
  int64_t group, channel, channels, tap, taps, out, outs;
};

// All of the gradient, dealt out. Shares with many channels plan their samples once for all of them; few taps keep the
// sums in L2. Output channels are split only where there would be too few shares, for these gather the same columns.
template <class A>
std::vector<Share> weight_shares(const Problem& p, int64_t narrow) {
  constexpr int64_t wide = 4 * kPanel<A>, most_sums = 128 * 1024;
  const int64_t Cg = p.group_in(), Og = narrow ? narrow : p.group_out(), K = p.taps(), threads = torch::stable::get_num_threads();
  const auto pieces = [](int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; };
  int64_t channels = std::min(wide, padded<A>(Cg)), outs = Og;
  int64_t splits = pieces(threads, p.groups * pieces(Cg, channels));
  const int64_t most_taps = std::max<int64_t>(1, most_sums / (channels * Og));
  const int64_t runs = pieces(K, std::min(most_taps, pieces(K, std::min(K, splits)))), taps = pieces(K, runs);
  splits = pieces(splits, runs);
  if (splits > 1 && channels > kPanel<A>) {
    splits = pieces(splits, pieces(channels, kPanel<A>));
    channels = kPanel<A>;
  }
  if (splits > 1 && !narrow) outs = pieces(pieces(Og, splits), kRows) * kRows;

  std::vector<Share> shares;
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t c = 0; c < Cg; c += channels)
      for (int64_t k = 0; k < K; k += taps)
        for (int64_t o = 0; o < Og; o += outs)
          shares.push_back({g, c, std::min(channels, Cg - c), k, std::min(taps, K - k), o, std::min(outs, Og - o)});
  return shares;
}

template <class T>
struct WeightPass {
  using A = Sum<T>;
  const BackwardArguments<T>& args;
  int64_t narrow;  // channels of a group, where these are narrow (narrow.h); then the problem's groups are one
  std::vector<Segment> parts;
  std::vector<Share> shares;
  Kept<A> sums;  // per group, tap and panel [output channel, panel]; of narrow groups per tap as narrow.h has them
  Buffer<A> nowhere;

  WeightPass(const BackwardArguments<T>& args, int64_t narrow);
  void add(WeightTile<A>& tile, const Share& share, const Image<A>& image) const;
  void gather(WeightTile<A>& tile, const Share& share, const Image<A>& image, int64_t tap, int64_t first,
              int64_t count) const;
  void multiply_share(WeightTile<A>& tile, const Share& share, const Image<A>& image, int64_t tap, int64_t channel,
                      int64_t first, int64_t count) const;
  void write() const;
  void write_narrow() const;
  A* sums_of(int64_t group, int64_t tap, int64_t channel) const;
  int64_t width(int64_t channel) const {  // of the panel that starts there
    return std::min(kPanel<A>, padded<A>(args.problem.group_in()) - channel);
  }
};

template <class A>
Buffer<A>& weight_sums() {
  thread_local Buffer<A> memory;
  return memory;
}

template <class T>
WeightPass<T>::WeightPass(const BackwardArguments<T>& args, int64_t narrow)
    : args(args),
      narrow(narrow),
      parts(segments(args.problem)),
      shares(weight_shares<A>(args.problem, narrow)),
      sums(weight_sums<A>(), (narrow ? narrow : args.problem.Co) * padded<A>(args.problem.group_in()) * args.problem.taps()),
      nowhere(args.problem.C) {
  std::fill_n(nowhere.data(), args.problem.C, A(0));
}

template <class T>
Sum<T>* WeightPass<T>::sums_of(int64_t group, int64_t tap, int64_t channel) const {
  const Problem& p = args.problem;
  const int64_t outs = narrow ? narrow : p.group_out();
  return sums.data() + ((group * p.taps() + tap) * padded<A>(p.group_in()) + channel) * outs;
}

// The share's columns of one tap, in panels.
template <class T>
void WeightPass<T>::gather(WeightTile<A>& tile, const Share& share, const Image<A>& image, int64_t tap, int64_t first,
                           int64_t count) const {
  const Problem& p = args.problem;
  int64_t planned = -1;
  for (const Segment& s : parts) {
    if (s.group != share.group) continue;
    int64_t begin = std::max(s.first, share.channel);
    const int64_t end = std::min(s.first + s.count, share.channel + share.channels);
    if (begin >= end) continue;
    if (s.deform_group != planned) {
      planned = s.deform_group;
      place_samples(p, args.offset, args.mask, image.n, planned, tap, first, count, tile.samples);
      tile.corners.plan(tile.samples, count, image.input, nowhere.data(), p.H, p.W, p.C);
    }
    while (begin < end) {
      const int64_t panel = begin / kPanel<A> * kPanel<A>, stop = std::min(end, panel + kPanel<A>);
      A* const columns = tile.columns.data() + (panel - share.channel) * kSamples + begin - panel;
      tile.corners.gather(count, s.group * p.group_in() + begin, stop - begin, columns, width(panel));
      begin = stop;
    }
  }
}

// Adds what one image gives.
template <class T>
void WeightPass<T>::add(WeightTile<A>& tile, const Share& share, const Image<A>& image) const {
  const Problem& p = args.problem;
  const int64_t P = p.out_pixels();
  tile.columns.resize(kSamples * padded<A>(share.channels));
  // Lanes beyond the channels add to sums that nobody reads; rubbish there could be denormal, which is slow.
  std::fill_n(tile.columns.data(), kSamples * padded<A>(share.channels), A(0));
  for (int64_t first = 0; first < P; first += kSamples) {
    const int64_t count = std::min(kSamples, P - first);
    for (int64_t tap = share.tap; tap < share.tap + share.taps; ++tap) {
      gather(tile, share, image, tap, first, count);
      for (int64_t c = share.channel; c < share.channel + share.channels; c += kPanel<A>)
        multiply_share(tile, share, image, tap, c, first, count);
    }
  }
}

// Adds a panel's columns times the gradient of the output.
template <class T>
void WeightPass<T>::multiply_share(WeightTile<A>& tile, const Share& share, const Image<A>& image, int64_t tap,
                                   int64_t channel, int64_t first, int64_t count) const {
  const Problem& p = args.problem;
  const bool fresh = image.n == 0 && first == 0;
  const int64_t panel = width(channel), channels = std::min(panel, share.channel + share.channels - channel);
  const A* const columns = tile.columns.data() + (channel - share.channel) * kSamples;
  const A* const grad = image.grad_output + first * p.Co;
  A* const to = sums_of(share.group, tap, channel);
  if (narrow) {
    if (fresh) std::fill_n(to, panel * narrow, A(0));
    return for_narrow<A>(narrow, [&](auto n) {
      add_narrow<A, n>(grad + channel, p.Co, columns, panel, count, channels, to);
    });
  }
  const ByDepth<A> rows{grad + share.group * p.group_out() + share.out, p.Co};
  multiply_panel(panel, rows, share.outs, count, columns, columns, Tile<A>{to + share.out * panel, panel}, !fresh);
}

// From the sums to grad_weight [Co, C / groups, kh, kw].
template <class T>
void WeightPass<T>::write() const {
  const Problem& p = args.problem;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out();
  if (narrow) return write_narrow();
  for_each_task(p.Co, [&](int64_t o) {
    T* const row = args.grad_weight + o * Cg * K;
    for (int64_t c = 0; c < Cg; c += kPanel<A>) {
      const int64_t channels = std::min(kPanel<A>, Cg - c);
      for (int64_t k = 0; k < K; ++k) {
        const A* from = sums_of(o / Og, k, c) + o % Og * width(c);
        for (int64_t j = 0; j < channels; ++j) row[(c + j) * K + k] = T(from[j]);
      }
    }
  });
}

template <class T>
void WeightPass<T>::write_narrow() const {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t K = args.problem.taps();
  for (int64_t o = 0; o < args.problem.Co; ++o)
    for (int64_t j = 0; j < narrow; ++j)
      for (int64_t k = 0; k < K; ++k)
        args.grad_weight[(o * narrow + j) * K + k] = T(sums_of(0, k, o / lanes * lanes)[j * lanes + o % lanes]);
}
