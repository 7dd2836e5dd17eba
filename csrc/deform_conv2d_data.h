// The gradients of input, offset and mask. Included inside a namespace that is compiled for one instruction set.
//
// A task owns a strip of rows of one image's grad_input and takes every sample whose cell starts there. It multiplies
// the gradients of a batch of columns and, in one sweep over the channels, reads the four corners (for offset and mask)
// and adds to the four corners of grad_input. A cell reaches one row into the next strip, so even strips go first and
// odd ones after them: no two tasks that run at once share memory, and each element is summed in an order that depends
// on the shapes alone.

// Samples of one deformable group and tap that a strip owns, as many as are collected at a time.
template <class A>
struct Collected {
  static constexpr int64_t kMost = 2048, kBuckets = 1024;
  int64_t count = 0, pixel[kMost];
  A y[kMost], x[kMost], mask[kMost];
  int32_t order[kMost];  // sorted by where they lie from left to right

  void sort(int64_t W);
};

// Neighbours share corners, which are then in L1; in the order of the output they would come from L2 each time.
template <class A>
void Collected<A>::sort(int64_t W) {
  int shift = 0;
  while ((W >> shift) + 2 > kBuckets) ++shift;
  const int64_t buckets = (W >> shift) + 2;
  int32_t bucket[kMost], start[kBuckets + 1];
  std::fill_n(start, buckets + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    const A place = x[i] >= A(0) ? std::min(x[i], A(W)) : A(-1);  // -1 for NaN too
    bucket[i] = int32_t(int64_t(place + 1) >> shift);
    ++start[bucket[i] + 1];
  }
  for (int64_t b = 0; b < buckets; ++b) start[b + 1] += start[b];
  for (int64_t i = 0; i < count; ++i) order[start[bucket[i]]++] = int32_t(i);
}

// What a thread works on: the samples of a strip, and of these a batch at a time.
template <class A>
struct DataTile {
  Buffer<A> grad_columns, trash;
  Collected<A> collected;
  Samples<A> samples;
  Corners<A, A> corners;
  int64_t count = 0, pixel[kSamples];
  const A* grad_rows[kSamples];
  A dots[kSamples][4];  // of a column's gradient with each of its corners
};

template <class T>
struct DataPass {
  using A = Sum<T>;
  const BackwardArguments<T>& args;
  int64_t narrow;  // channels of a group, where these are narrow (narrow.h); then the problem's groups are one
  std::vector<Segment> parts;
  int64_t per_tap;  // packed weights
  Kept<A> weight;
  Buffer<A> nowhere;

  DataPass(const BackwardArguments<T>& args, int64_t narrow);
  static int64_t place(std::vector<Segment>& parts, int64_t outs);
  void multiply_segment(DataTile<A>& tile, const Segment& s, int64_t tap, int64_t stride) const;
  void pack();
  void strip(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1, const int32_t* reach) const;
  void collect(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1, int64_t group, int64_t tap,
               int64_t ho, int64_t wo, int64_t count) const;
  void batches(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const;
  void batch(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const;
  void sweep(DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t stride) const;
  void sweep_last(DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t stride) const;
  void sweep_few(DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t stride) const;
  void finish(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const;
};

// Where a sample's corners are read and where their gradients go: into the trash, if a corner is off the map.
template <class A>
struct Corner {
  const A* from[4];
  A* to[4];
  A weight[4];

  template <class T>
  Corner(const DataPass<T>& pass, DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t i) {
    for (int q = 0; q < 4; ++q) {
      const A* pixel = tile.corners.sample[i].pixel[q];
      const bool inside = pixel != pass.nowhere.data() && image.grad_input;
      from[q] = pixel + s.channel;
      to[q] = (inside ? image.grad_input + (pixel - image.input) : tile.trash.data()) + s.channel;
      weight[q] = tile.corners.sample[i].weight[q];
    }
  }
};

template <class T>
DataPass<T>::DataPass(const BackwardArguments<T>& args, int64_t narrow)
    : args(args),
      narrow(narrow),
      parts(segments(args.problem)),
      per_tap(place(parts, narrow ? narrow : args.problem.group_out())),
      weight(packed_memory<A>(), per_tap * args.problem.taps()),
      nowhere(args.problem.C) {
  std::fill_n(nowhere.data(), args.problem.C, A(0));
  pack();
}

// How much room a tap's weights take; tells each segment where its own begin.
template <class T>
int64_t DataPass<T>::place(std::vector<Segment>& parts, int64_t outs) {
  int64_t at = 0;
  for (Segment& s : parts) {
    s.packed_at = at;
    at += Packed<A>::size(s.count, outs);
  }
  return at;
}

// The weight, transposed: for every tap and segment a matrix [Co / groups, channels].
template <class T>
void DataPass<T>::pack() {
  const Problem& p = args.problem;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out();
  if (narrow) {
    for (const Segment& s : parts)
      pack_narrow(args.weight, K, narrow, s.channel, s.count, true, weight.data() + s.packed_at, per_tap);
    return;
  }
  for_each_task(Og, [&](int64_t o) {
    for (const Segment& s : parts) {
      const T* from = args.weight + ((s.group * Og + o) * Cg + s.first) * K;
      for (int64_t k = 0; k < K; ++k) {
        const Packed<A> to{weight.data() + k * per_tap + s.packed_at, s.count, Og};
        for (int64_t c = 0; c < padded<A>(s.count); c += kPanel<A>) {
          A* row = to.at(c, o);
          for (int64_t j = 0; j < to.width(c); ++j) row[j] = c + j < s.count ? A(from[(c + j) * K + k]) : A(0);
        }
      }
    }
  });
}

// The row of grad_input whose strip owns a sample: that of its cell, or the nearest; NaN goes to the first.
template <class A>
inline int64_t owner_row(A y, int64_t H) {
  return y >= A(1) ? (y < A(H) ? int64_t(y) : H - 1) : 0;
}

// Height of a strip, a function of the shape alone. A strip's samples of one tap should fill a few batches, and yet there
// should be a few strips for every thread.
inline int64_t strip_height(const Problem& p) {
  const int64_t share = p.out_pixels() / 16;
  const int64_t samples = std::min(4 * kSamples, std::max(kSamples * 2 / 3, share));
  return std::max<int64_t>(1, samples * p.H / p.out_pixels());
}

// For each deformable group, tap and output row the first and the last row that owns one of its samples, so that a
// strip need not look at every sample of the image.
template <class T>
void find_reach(const BackwardArguments<T>& args, int64_t n, int32_t* reach) {
  using A = Sum<T>;
  const Problem& p = args.problem;
  const int64_t K = p.taps();
  for_each_task(p.Ho, [&](int64_t ho) {
    A y[kSamples];
    for (int64_t channel = 0; channel < p.deform_groups * K; ++channel) {
      const A row = A(tap_row(p, ho, channel % K));
      int64_t low = p.H, high = -1;
      for (int64_t wo = 0; wo < p.Wo; wo += kSamples) {
        const int64_t count = std::min(kSamples, p.Wo - wo);
        args.offset.read(n, 2 * channel, ho * p.Wo + wo, count, y);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t owner = owner_row(row + y[i], p.H);
          low = std::min(low, owner);
          high = std::max(high, owner);
        }
      }
      reach[(channel * p.Ho + ho) * 2] = int32_t(low);
      reach[(channel * p.Ho + ho) * 2 + 1] = int32_t(high);
    }
  });
}

template <class T>
void DataPass<T>::strip(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1,
                        const int32_t* reach) const {
  const Problem& p = args.problem;
  tile.collected.count = 0;
  for (int64_t group = 0; group < p.deform_groups; ++group)
    for (int64_t tap = 0; tap < p.taps(); ++tap) {
      const int64_t channel = group * p.taps() + tap;
      for (int64_t ho = 0; ho < p.Ho; ++ho) {
        const int32_t* span = reach + (channel * p.Ho + ho) * 2;
        if (span[1] < row0 || span[0] >= row1) continue;
        for (int64_t wo = 0; wo < p.Wo; wo += kSamples)
          collect(tile, image, row0, row1, group, tap, ho, wo, std::min(kSamples, p.Wo - wo));
      }
      batches(tile, image, group, tap);
    }
}

// Takes from a stretch of one output row the samples that the strip owns.
template <class T>
void DataPass<T>::collect(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1, int64_t group,
                          int64_t tap, int64_t ho, int64_t wo, int64_t count) const {
  const Problem& p = args.problem;
  const int64_t channel = group * p.taps() + tap, first = ho * p.Wo + wo;
  A y[kSamples], x[kSamples], mask[kSamples];
  int32_t owned[kSamples], mine[kSamples];
  args.offset.read(image.n, 2 * channel, first, count, y);
  const A row = A(tap_row(p, ho, tap)), low = A(row0), high = A(row1);
  const bool top = row0 == 0, bottom = row1 == p.H;  // own what lies beyond the map, the top also NaN
  for (int64_t i = 0; i < count; ++i) {
    y[i] += row;
    owned[i] = ((y[i] >= low) | top) & (!(y[i] >= high) | bottom);
  }
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {  // without a branch: which samples are ours can't be predicted
    mine[found] = int32_t(i);
    found += owned[i];
  }
  if (!found) return;
  args.offset.read(image.n, 2 * channel + 1, first, count, x);
  if (args.mask) args.mask.read(image.n, channel, first, count, mask);
  Collected<A>& to = tile.collected;
  if (to.count + found > to.kMost) batches(tile, image, group, tap);
  const int64_t column = tap_column(p, wo, tap), step = p.stride_w, at = to.count;
  for (int64_t k = 0; k < found; ++k) {
    const int64_t i = mine[k];
    to.y[at + k] = y[i];
    to.x[at + k] = x[i] + A(column + i * step);
    to.mask[at + k] = args.mask ? mask[i] : A(1);
    to.pixel[at + k] = first + i;
  }
  to.count += found;
}

// All that has been collected, in batches of one size.
template <class T>
void DataPass<T>::batches(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const {
  Collected<A>& from = tile.collected;
  if (!from.count) return;
  from.sort(args.problem.W);
  const int64_t pieces = (from.count + kSamples - 1) / kSamples, size = (from.count + pieces - 1) / pieces;
  for (int64_t first = 0; first < from.count; first += size) {
    tile.count = std::min(size, from.count - first);
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t k = from.order[first + i];
      tile.samples.y[i] = from.y[k];
      tile.samples.x[i] = from.x[k];
      tile.samples.mask[i] = from.mask[k];
      tile.pixel[i] = from.pixel[k];
    }
    batch(tile, image, group, tap);
  }
  from.count = 0;
}

template <class T>
void DataPass<T>::batch(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const {
  const Problem& p = args.problem;
  const int64_t Og = p.group_out(), stride = padded<A>(p.deform_channels()) + kLanes<A>;
  tile.grad_columns.resize(kSamples * stride);
  tile.samples.locate(tile.count, p.H, p.W);
  tile.corners.plan(tile.samples, tile.count, image.input, nowhere.data(), p.H, p.W, p.C);
  std::fill_n(&tile.dots[0][0], 4 * tile.count, A(0));
  tile.trash.resize(p.C);
  for (const Segment& s : parts) {
    if (s.deform_group != group) continue;
    for (int64_t r = 0; r < tile.count; ++r) {
      const int64_t channel = narrow ? s.channel : s.group * Og;
      tile.grad_rows[r] = image.grad_output + tile.pixel[r] * p.Co + channel;
    }
    multiply_segment(tile, s, tap, stride);
    sweep(tile, image, s, stride);
  }
  finish(tile, image, group, tap);
}

// From the gradient of the output to that of the columns.
template <class T>
void DataPass<T>::multiply_segment(DataTile<A>& tile, const Segment& s, int64_t tap, int64_t stride) const {
  A* const weights = weight.data() + tap * per_tap + s.packed_at;
  const Tile<A> to{tile.grad_columns.data(), stride};
  if (narrow) {
    const auto rows = [&](int64_t r) { return tile.grad_rows[r]; };
    return for_narrow<A>(narrow, [&](auto n) { multiply_narrow<A, n>(rows, tile.count, s.count, weights, to, false); });
  }
  const int64_t Og = args.problem.group_out();
  multiply(tile.grad_rows, tile.count, Packed<A>{weights, s.count, Og}, 0, Og, to, false);
}

template <class T>
void DataPass<T>::sweep(DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t stride) const {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t whole = s.count / lanes * lanes;
  for (int64_t i = 0; i < tile.count; ++i) {
    const Corner<A> corner(*this, tile, image, s, i);
    const A* const grad = tile.grad_columns.data() + i * stride;
    Vector<A> d0 = {}, d1 = {}, d2 = {}, d3 = {};
    for (int64_t c = 0; c < whole; c += lanes) {
      const Vector<A> g = load(grad + c);
      d0 += g * load(corner.from[0] + c);
      d1 += g * load(corner.from[1] + c);
      d2 += g * load(corner.from[2] + c);
      d3 += g * load(corner.from[3] + c);
      store(corner.to[0] + c, load(corner.to[0] + c) + corner.weight[0] * g);
      store(corner.to[1] + c, load(corner.to[1] + c) + corner.weight[1] * g);
      store(corner.to[2] + c, load(corner.to[2] + c) + corner.weight[2] * g);
      store(corner.to[3] + c, load(corner.to[3] + c) + corner.weight[3] * g);
    }
    const Vector<A> dots[4] = {d0, d1, d2, d3};
    add_lanes<A>(dots, tile.dots[i]);
  }
  if (whole == s.count) return;
  if (s.count > lanes)
    sweep_last(tile, image, s, stride);
  else
    sweep_few(tile, image, s, stride);
}

// The channels that whole vectors leave over, in one that overlaps them: its first lanes have been done.
template <class T>
__attribute__((noinline)) void DataPass<T>::sweep_last(DataTile<A>& tile, const Image<A>& image, const Segment& s,
                                                       int64_t stride) const {
  constexpr int64_t lanes = kLanes<A>;
  using Ints = typename VectorOf<typename Samples<A>::Int, lanes>::type;
  const int64_t c = s.count - lanes, first = lanes - s.count % lanes;
  Ints fresh;
  for (int64_t j = 0; j < lanes; ++j) fresh[j] = j >= first ? -1 : 0;
  const Vector<A> zero = {};
  for (int64_t i = 0; i < tile.count; ++i) {
    const Corner<A> corner(*this, tile, image, s, i);
    const Vector<A> g = load(tile.grad_columns.data() + i * stride + c);
    Vector<A> dots[4];
    for (int q = 0; q < 4; ++q) {
      dots[q] = fresh ? g * load(corner.from[q] + c) : zero;
      const Vector<A> more = fresh ? corner.weight[q] * g : zero;
      store(corner.to[q] + c, load(corner.to[q] + c) + more);
    }
    add_lanes<A>(dots, tile.dots[i]);
  }
}

// Fewer channels than a vector holds.
template <class T>
__attribute__((noinline)) void DataPass<T>::sweep_few(DataTile<A>& tile, const Image<A>& image, const Segment& s,
                                                      int64_t stride) const {
  for_few<A>(s.count, [&](auto n, int64_t c) {
    using Few = typename VectorOf<A, n>::type;
    for (int64_t i = 0; i < tile.count; ++i) {
      const Corner<A> corner(*this, tile, image, s, i);
      const Few g = load_few<A, n>(tile.grad_columns.data() + i * stride + c);
      for (int q = 0; q < 4; ++q) {
        const Few dot = g * load_few<A, n>(corner.from[q] + c);
        for (int j = 0; j < n; ++j) tile.dots[i][q] += dot[j];
        Few* const to = reinterpret_cast<Few*>(corner.to[q] + c);
        *to += corner.weight[q] * g;
      }
    }
  });
}

// From the dots to the gradients of offset and mask: the derivatives of the bilinear weights.
template <class T>
void DataPass<T>::finish(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const {
  const int64_t channel = group * args.problem.taps() + tap;
  A along_y[kSamples], along_x[kSamples], value[kSamples];
  for (int64_t i = 0; i < tile.count; ++i) {
    const A* d = tile.dots[i];
    const A ly = tile.samples.ly[i], lx = tile.samples.lx[i], mask = tile.samples.mask[i];
    along_y[i] = mask * ((d[2] - d[0]) * (1 - lx) + (d[3] - d[1]) * lx);
    along_x[i] = mask * ((d[1] - d[0]) * (1 - ly) + (d[3] - d[2]) * ly);
    value[i] = (1 - ly) * ((1 - lx) * d[0] + lx * d[1]) + ly * ((1 - lx) * d[2] + lx * d[3]);
  }
  if (args.grad_offset) {
    args.grad_offset.scatter(image.n, 2 * channel, tile.pixel, tile.count, along_y);
    args.grad_offset.scatter(image.n, 2 * channel + 1, tile.pixel, tile.count, along_x);
  }
  if (args.grad_mask) args.grad_mask.scatter(image.n, channel, tile.pixel, tile.count, value);
}
