// Deformable convolution, forward. Included inside a namespace that is compiled for one instruction set.
//
// A task computes a tile of up to kSamples output pixels, all output channels: for a few taps at a time it gathers the
// tile's columns into a buffer that stays in L2, and multiplies them at once by weights packed into panels. No more of
// the column matrix than that ever exists.

constexpr int64_t kColumnBudget = 256;  // channels times taps gathered at a time, per pixel

// Weight [Co, C / groups, kh, kw] as one packed matrix per group, of depth (tap, channel).
template <class T>
void pack_weight(const Problem& p, const T* weight, Sum<T>* packed) {
  using A = Sum<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out(), D = K * Cg, vectors = padded<A>(Og) / lanes;
  for_each_task(p.groups * vectors, [&](int64_t task) {
    const int64_t g = task / vectors, o = task % vectors * lanes, column = o / kPanel<A> * kPanel<A>;
    const Packed<A> to{packed + g * Packed<A>::size(Og, D), Og, D};
    const T* from = weight + (g * Og + o) * D;
    const auto row = [&](int64_t d) { return to.at(column, d % K * Cg + d / K) + o - column; };
    int64_t d = 0;
    for (; o + lanes <= Og && d + lanes <= D; d += lanes) {
      Vector<A> block[lanes];
      for (int i = 0; i < lanes; ++i) block[i] = load(from + i * D + d);
      transpose<A>(block);
      for (int i = 0; i < lanes; ++i) store(row(d + i), block[i]);
    }
    for (; d < D; ++d)
      for (int64_t i = 0; i < lanes; ++i) row(d)[i] = o + i < Og ? A(from[i * D + d]) : A(0);
  });
}

// Where a tap looks without its offset.
inline int64_t tap_row(const Problem& p, int64_t ho, int64_t tap) {
  return ho * p.stride_h - p.padding_h + tap / p.kw * p.dilation_h;
}
inline int64_t tap_column(const Problem& p, int64_t wo, int64_t tap) {
  return wo * p.stride_w - p.padding_w + tap % p.kw * p.dilation_w;
}

// The samples of one tap, for `count` output pixels from `first` on.
template <class A>
void place_samples(const Problem& p, const Field<A>& offset, const Field<A>& mask, int64_t n, int64_t group, int64_t tap,
                   int64_t first, int64_t count, Samples<A>& samples) {
  const int64_t channel = group * p.taps() + tap;
  offset.read(n, 2 * channel, first, count, samples.y);
  offset.read(n, 2 * channel + 1, first, count, samples.x);
  for (int64_t i = 0; i < count;) {  // row by row
    const int64_t ho = (first + i) / p.Wo, wo = (first + i) % p.Wo, run = std::min(count - i, p.Wo - wo);
    const int64_t row = tap_row(p, ho, tap), column = tap_column(p, wo, tap), step = p.stride_w;
    for (int64_t j = 0; j < run; ++j) {
      samples.y[i + j] += A(row);
      samples.x[i + j] += A(column + j * step);
    }
    i += run;
  }
  if (mask)
    mask.read(n, channel, first, count, samples.mask);
  else
    std::fill_n(samples.mask, count, A(1));
  samples.locate(count, p.H, p.W);
}

template <class T>
struct ForwardTile {
  using A = Sum<T>;
  Buffer<A> columns, sums;
  Samples<A> samples;
  Corners<A, T> corners;
  const A* rows[kSamples];
};

// Everything that all tiles share.
template <class T>
struct ForwardPlan {
  using A = Sum<T>;
  const ForwardArguments<T>& args;
  int64_t narrow;   // channels of a group, where these are narrow (narrow.h); then the problem's groups are one
  const A* weight;  // packed
  const T* nowhere;
  std::vector<Segment> segments;
  bool direct;      // sums go straight to the output

  void run(ForwardTile<T>& tile, const T* image, int64_t n, int64_t first, int64_t count) const;
  void gather(ForwardTile<T>& tile, const T* image, int64_t n, int64_t first, int64_t count, int64_t tap, int64_t c0,
              int64_t c1, A* columns, int64_t stride) const;
  void multiply_taps(ForwardTile<T>& tile, int64_t count, int64_t tap, int64_t taps, int64_t c, int64_t channels,
                     int64_t stride, Tile<A> out) const;
};

// One tap's columns, of channels [c0, c1) of every group of the convolution.
template <class T>
void ForwardPlan<T>::gather(ForwardTile<T>& tile, const T* image, int64_t n, int64_t first, int64_t count, int64_t tap,
                            int64_t c0, int64_t c1, A* columns, int64_t stride) const {
  const Problem& p = args.problem;
  int64_t planned = -1;
  for (const Segment& s : segments) {
    const int64_t begin = std::max(s.first, c0), end = std::min(s.first + s.count, c1);
    if (begin >= end) continue;
    if (s.deform_group != planned) {
      planned = s.deform_group;
      place_samples(p, args.offset, args.mask, n, planned, tap, first, count, tile.samples);
      tile.corners.plan(tile.samples, count, image, nowhere, p.H, p.W, p.C);
    }
    tile.corners.gather(count, s.group * p.group_in() + begin, end - begin,
                        columns + s.group * kSamples * stride + begin - c0, stride);
  }
}

// One tap after another, for narrow groups.
template <class T>
void ForwardPlan<T>::multiply_taps(ForwardTile<T>& tile, int64_t count, int64_t tap, int64_t taps, int64_t c,
                                   int64_t channels, int64_t stride, Tile<A> out) const {
  const Problem& p = args.problem;
  for_narrow<A>(narrow, [&](auto n) {
    for (int64_t t = 0; t < taps; ++t) {
      const A* const columns = tile.columns.data() + t * channels;
      const auto rows = [&](int64_t r) { return columns + r * stride; };
      const A* const weights = weight + ((tap + t) * padded<A>(p.C) + c) * n;
      multiply_narrow<A, n>(rows, count, channels, weights, Tile<A>{out.data + c, out.stride}, tap + t > 0);
    }
  });
}

template <class T>
void ForwardPlan<T>::run(ForwardTile<T>& tile, const T* image, int64_t n, int64_t first, int64_t count) const {
  const Problem& p = args.problem;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out(), D = K * Cg;
  const int64_t channels = std::min(Cg, std::max<int64_t>(1, kColumnBudget / p.groups));  // of each group at a time
  const int64_t taps = std::min(K, std::max<int64_t>(1, kColumnBudget / p.C));           // at a time
  const int64_t stride = taps * channels + kLanes<A>;  // a power of two would crowd into a few cache sets
  const int64_t out_stride = direct ? p.Co : padded<A>(Og);
  tile.columns.resize(p.groups * kSamples * stride);
  if (!direct) tile.sums.resize(p.groups * kSamples * out_stride);

  for (int64_t k = 0; k < K; k += taps)
    for (int64_t c = 0; c < Cg; c += channels) {
      const int64_t run_taps = std::min(taps, K - k), run_channels = std::min(channels, Cg - c);
      for (int64_t t = 0; t < run_taps; ++t)
        gather(tile, image, n, first, count, k + t, c, c + run_channels, tile.columns.data() + t * run_channels, stride);
      for (int64_t g = 0; g < p.groups; ++g) {
        for (int64_t r = 0; r < count; ++r) tile.rows[r] = tile.columns.data() + (g * kSamples + r) * stride;
        A* out = tile.sums.data() + g * kSamples * out_stride;
        if constexpr (std::is_same_v<A, T>)
          if (direct) out = args.output.at(n) + first * p.Co + g * Og;
        if (narrow) {
          multiply_taps(tile, count, k, run_taps, c, run_channels, stride, Tile<A>{out, out_stride});
          continue;
        }
        const Packed<A> b{const_cast<A*>(weight) + g * Packed<A>::size(Og, D), Og, D};
        multiply(tile.rows, count, b, k * Cg + c, run_taps * run_channels, Tile<A>{out, out_stride}, k > 0 || c > 0);
      }
    }
  if (direct) return;
  for (int64_t g = 0; g < p.groups; ++g)
    from_rows(tile.sums.data() + g * kSamples * out_stride, out_stride, args.output, n, g * Og, Og, first, count);
}

// Output pixels per tile: as many as fit, but so that all threads are done at the same time.
inline int64_t tile_size(const Problem& p) {
  const int64_t P = p.out_pixels(), threads = torch::stable::get_num_threads();
  const int64_t rounds = std::max<int64_t>(1, (p.N * P + kSamples * threads - 1) / (kSamples * threads));
  const int64_t tiles = std::max<int64_t>(1, rounds * threads / p.N);  // of one image
  return std::min(kSamples, ((P + tiles - 1) / tiles + kRows - 1) / kRows * kRows);
}

template <class T>
void forward(const ForwardArguments<T>& given) {
  using A = Sum<T>;
  ForwardArguments<T> args = given;
  const int64_t narrow = is_narrow<A>(given.problem) ? given.problem.group_in() : 0;
  if (narrow) args.problem.groups = 1;  // that is how the columns are gathered
  const Problem& p = args.problem;
  const int64_t P = p.out_pixels(), size = tile_size(p), tiles = (P + size - 1) / size, K = p.taps();
  const Kept<A> packed(packed_memory<A>(), narrow ? K * padded<A>(p.C) * narrow : p.groups * Packed<A>::size(p.group_out(), K * p.group_in()));
  if (narrow)
    pack_narrow(args.weight, K, narrow, 0, p.C, false, packed.data(), padded<A>(p.C) * narrow);
  else
    pack_weight(p, args.weight, packed.data());
  Buffer<T> nowhere(p.C);
  std::fill_n(nowhere.data(), p.C, T(0));
  const bool direct = std::is_same_v<A, T> && args.output.channels_last() && p.group_out() % kLanes<A> == 0;
  const ForwardPlan<T> plan{args, narrow, packed.data(), nowhere.data(), segments(p), direct};

  const auto tile = [&](const T* image, int64_t n, int64_t t) {
    thread_local ForwardTile<T> scratch;
    plan.run(scratch, image, n, t * size, std::min(size, P - t * size));
  };
  if (args.input.channels_last()) {
    for_each_task(p.N * tiles, [&](int64_t i) { tile(args.input.at(i / tiles), i / tiles, i % tiles); });
    return;
  }
  // Another layout is converted image by image: a whole batch at once would cost its size in memory.
  Buffer<T> image(p.in_pixels() * p.C);
  for (int64_t n = 0; n < p.N; ++n) {
    image_to_rows(args.input, n, p.in_pixels(), p.C, image.data());
    for_each_task(tiles, [&](int64_t i) { tile(image.data(), n, i); });
  }
}
