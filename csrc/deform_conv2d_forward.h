// Deformable convolution, forward. Included inside a namespace that is compiled for one instruction set.
//
// A task computes a tile of up to kSamples output pixels, all output channels: for a few taps at a time it gathers the
// tile's columns into a buffer that stays in L2, and multiplies them at once by weights packed into panels. No more of
// the column matrix than that ever exists.

constexpr int64_t kColumnBudget = 256;  // channels times taps gathered at a time, per pixel

// Weight [Co, C / groups, kh, kw] as one packed matrix per group, of depth (tap, element of channels).
template <class T, class E>
void pack_weight(const Problem& p, const T* weight, E* packed) {
  using A = Sum<T>;
  constexpr int64_t lanes = kLanes<A>, numbers = Element<E>::numbers;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out(), D = K * Cg, vectors = padded<A>(Og) / lanes;
  const int64_t elements = element_count<E>(Cg), depth = K * elements;
  for_each_task(p.groups * vectors, [&](int64_t task) {
    const int64_t g = task / vectors, o = task % vectors * lanes, column = o / kPanel<E> * kPanel<E>;
    const Packed<E> to{packed + g * Packed<E>::size(Og, depth), Og, depth};
    const T* from = weight + (g * Og + o) * D;
    const auto put_depth = [&](int64_t d, Vector<A> v) {  // an element's numbers come in order
      const int64_t tap = d % K, channel = d / K;
      put(to.at(column, tap * elements + channel / numbers) + o - column, v, channel % numbers);
    };
    int64_t d = 0;
    for (; o + lanes <= Og && d + lanes <= D; d += lanes) {
      Vector<A> block[lanes];
      for (int i = 0; i < lanes; ++i) block[i] = load(from + i * D + d);
      transpose<A>(block);
      for (int i = 0; i < lanes; ++i) put_depth(d + i, block[i]);
    }
    for (; d < D; ++d) {
      A rest[lanes];
      for (int64_t i = 0; i < lanes; ++i) rest[i] = o + i < Og ? A(from[i * D + d]) : A(0);
      put_depth(d, load(rest));
    }
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

template <class T, class E>
struct ForwardTile {
  using A = Sum<T>;
  Buffer<E> columns;
  Buffer<A> sums;
  Samples<A> samples;
  Corners<A, T> corners;
  const E* rows[kSamples];
};

// Everything that all tiles share. Columns and weights are multiplied as elements E.
template <class T, class E>
struct ForwardPlan {
  using A = Sum<T>;
  const ForwardArguments<T>& args;
  int64_t narrow;   // channels of a group, where these are narrow (narrow.h); then the problem's groups are one
  const E* weight;  // packed
  const T* nowhere;
  std::vector<Segment> segments;
  bool direct;      // sums go straight to the output

  void run(ForwardTile<T, E>& tile, const T* image, int64_t n, int64_t first, int64_t count) const;
  void gather(ForwardTile<T, E>& tile, const T* image, int64_t n, int64_t first, int64_t count, int64_t tap, int64_t c0,
              int64_t c1, E* columns, int64_t stride) const;
  void multiply_taps(ForwardTile<T, E>& tile, int64_t count, int64_t tap, int64_t taps, int64_t c, int64_t channels,
                     int64_t stride, Tile<A> out) const;
};

// One tap's columns, of channels [c0, c1) of every group of the convolution. What they leave of an element is zero.
template <class T, class E>
void ForwardPlan<T, E>::gather(ForwardTile<T, E>& tile, const T* image, int64_t n, int64_t first, int64_t count,
                               int64_t tap, int64_t c0, int64_t c1, E* columns, int64_t stride) const {
  using Number = typename Element<E>::Number;
  constexpr int64_t numbers = Element<E>::numbers;
  const Problem& p = args.problem;
  if ((c1 - c0) % numbers)
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t r = 0; r < count; ++r) columns[(g * kSamples + r) * stride + (c1 - c0) / numbers] = 0;
  int64_t planned = -1;
  for (const Segment& s : segments) {
    const int64_t begin = std::max(s.first, c0), end = std::min(s.first + s.count, c1);
    if (begin >= end) continue;
    if (s.deform_group != planned) {
      planned = s.deform_group;
      place_samples(p, args.offset, args.mask, n, planned, tap, first, count, tile.samples);
      tile.corners.plan(tile.samples, count, image, nowhere, p.H, p.W, p.C);
    }
    Number* const to = reinterpret_cast<Number*>(columns + s.group * kSamples * stride) + begin - c0;
    tile.corners.gather(count, s.group * p.group_in() + begin, end - begin, to, stride * numbers);
  }
}

// One tap after another, for narrow groups.
template <class T, class E>
void ForwardPlan<T, E>::multiply_taps(ForwardTile<T, E>& tile, int64_t count, int64_t tap, int64_t taps, int64_t c,
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

template <class T, class E>
void ForwardPlan<T, E>::run(ForwardTile<T, E>& tile, const T* image, int64_t n, int64_t first, int64_t count) const {
  constexpr int64_t numbers = Element<E>::numbers;
  const Problem& p = args.problem;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out(), D = K * element_count<E>(Cg);
  // Channels of each group at a time, in whole elements but for the last; taps at a time.
  const int64_t channels = std::min(Cg, std::max<int64_t>(1, kColumnBudget / p.groups / numbers) * numbers);
  const int64_t taps = std::min(K, std::max<int64_t>(1, kColumnBudget / p.C));
  // A power of two would crowd into a few cache sets.
  const int64_t stride = taps * element_count<E>(channels) + kLanes<E>;
  const int64_t out_stride = direct ? p.Co : padded<A>(Og);
  tile.columns.resize(p.groups * kSamples * stride);
  if (!direct) tile.sums.resize(p.groups * kSamples * out_stride);

  for (int64_t k = 0; k < K; k += taps)
    for (int64_t c = 0; c < Cg; c += channels) {
      const int64_t run_taps = std::min(taps, K - k), run_channels = std::min(channels, Cg - c);
      const int64_t elements = element_count<E>(run_channels);
      for (int64_t t = 0; t < run_taps; ++t)
        gather(tile, image, n, first, count, k + t, c, c + run_channels, tile.columns.data() + t * elements, stride);
      for (int64_t g = 0; g < p.groups; ++g) {
        for (int64_t r = 0; r < count; ++r) tile.rows[r] = tile.columns.data() + (g * kSamples + r) * stride;
        A* out = tile.sums.data() + g * kSamples * out_stride;
        if constexpr (std::is_same_v<A, T>)
          if (direct) out = args.output.at(n) + first * p.Co + g * Og;
        if constexpr (std::is_same_v<E, A>)
          if (narrow) {
            multiply_taps(tile, count, k, run_taps, c, run_channels, stride, Tile<A>{out, out_stride});
            continue;
          }
        const Packed<E> b{const_cast<E*>(weight) + g * Packed<E>::size(Og, D), Og, D};
        multiply(tile.rows, count, b, k * element_count<E>(Cg) + c / numbers, run_taps * elements,
                 Tile<A>{out, out_stride}, k > 0 || c > 0);
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

template <class T, class E>
void forward_tiles(const ForwardArguments<T>& args, int64_t narrow, const E* weight) {
  using A = Sum<T>;
  const Problem& p = args.problem;
  const int64_t P = p.out_pixels(), size = tile_size(p), tiles = (P + size - 1) / size;
  Buffer<T> nowhere(p.C);
  std::fill_n(nowhere.data(), p.C, T(0));
  const bool direct = std::is_same_v<A, T> && args.output.channels_last() && p.group_out() % kLanes<A> == 0;
  const ForwardPlan<T, E> plan{args, narrow, weight, nowhere.data(), segments(p), direct};

  const auto tile = [&](const T* image, int64_t n, int64_t t) {
    plan.run(thread_scratch<ForwardTile<T, E>>(), image, n, t * size, std::min(size, P - t * size));
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

template <class T>
void forward(const ForwardArguments<T>& args) {
  using A = Sum<T>;
  using E = typename ElementOf<T>::type;
  const Problem& p = args.problem;
  const int64_t K = p.taps();
  if (is_narrow<A>(p)) {
    const int64_t narrow = p.group_in(), tap_stride = padded<A>(p.C) * narrow;
    const Kept<A> packed(packed_memory<A>(), K * tap_stride);
    pack_narrow(args.weight, K, narrow, 0, p.C, false, packed.data(), tap_stride);
    ForwardArguments<T> as_one = args;
    as_one.problem.groups = 1;  // that is how the columns are gathered
    return forward_tiles<T, A>(as_one, narrow, packed.data());
  }
  const int64_t depth = K * element_count<E>(p.group_in());
  const Kept<E> packed(packed_memory<E>(), p.groups * Packed<E>::size(p.group_out(), depth));
  pack_weight(p, args.weight, packed.data());
  forward_tiles<T, E>(args, 0, packed.data());
}
