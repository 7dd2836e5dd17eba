// The gradients of input, offset and mask. Included inside a namespace that is compiled for one instruction set.
//
// A task owns a strip of rows of one image's grad_input and takes every sample whose cell starts there. It multiplies
// the gradients of a batch of columns and, in one sweep over the channels, reads the four corners (for offset and mask)
// and adds to the four corners of grad_input. A cell reaches one row into the next strip, so even strips go first and
// odd ones after them: no two tasks that run at once share memory, and each element is summed in an order that depends
// on the shapes alone.

// The samples of one deformable group and tap that a strip owns, a batch at a time.
template <class A>
struct DataTile {
  Buffer<A> grad_columns, trash;
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
  std::vector<Segment> parts;
  std::vector<int64_t> packed_at;  // where a segment's weights lie within a tap's
  int64_t per_tap = 0;
  Buffer<A> weight, nowhere;

  explicit DataPass(const BackwardArguments<T>& args);
  void pack();
  void strip(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1, const int32_t* reach) const;
  void collect(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1, int64_t group, int64_t tap,
               int64_t ho, int64_t wo, int64_t count) const;
  void batch(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const;
  void sweep(DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t stride) const;
  void sweep_rest(DataTile<A>& tile, const Image<A>& image, const Segment& s, int64_t first, int64_t stride) const;
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
DataPass<T>::DataPass(const BackwardArguments<T>& args) : args(args), parts(segments(args.problem)), nowhere(args.problem.C) {
  const Problem& p = args.problem;
  for (const Segment& s : parts) {
    packed_at.push_back(per_tap);
    per_tap += Packed<A>::size(s.count, p.group_out());
  }
  weight.resize(per_tap * p.taps());
  std::fill_n(nowhere.data(), p.C, A(0));
  pack();
}

// The weight, transposed: for every tap and segment a matrix [Co / groups, channels].
template <class T>
void DataPass<T>::pack() {
  const Problem& p = args.problem;
  const int64_t K = p.taps(), Cg = p.group_in(), Og = p.group_out();
  for_each_task(Og, [&](int64_t o) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const Segment& s = parts[i];
      const T* from = args.weight + ((s.group * Og + o) * Cg + s.first) * K;
      for (int64_t k = 0; k < K; ++k) {
        const Packed<A> to{weight.data() + k * per_tap + packed_at[i], s.count, Og};
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

// Height of a strip, a function of the shape alone. A strip's samples of one tap should fill a few batches, and there
// should be a few strips of either parity for every thread.
inline int64_t strip_height(const Problem& p) {
  const int64_t strips = std::min<int64_t>(32, std::max<int64_t>(8, p.out_pixels() / 192));
  return std::max<int64_t>(1, (p.H + strips - 1) / strips);
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
  for (int64_t group = 0; group < p.deform_groups; ++group)
    for (int64_t tap = 0; tap < p.taps(); ++tap) {
      const int64_t channel = group * p.taps() + tap;
      for (int64_t ho = 0; ho < p.Ho; ++ho) {
        const int32_t* span = reach + (channel * p.Ho + ho) * 2;
        if (span[1] < row0 || span[0] >= row1) continue;
        for (int64_t wo = 0; wo < p.Wo; wo += kSamples)
          collect(tile, image, row0, row1, group, tap, ho, wo, std::min(kSamples, p.Wo - wo));
      }
      if (tile.count) batch(tile, image, group, tap);
    }
}

// Takes from a stretch of one output row the samples that the strip owns.
template <class T>
void DataPass<T>::collect(DataTile<A>& tile, const Image<A>& image, int64_t row0, int64_t row1, int64_t group,
                          int64_t tap, int64_t ho, int64_t wo, int64_t count) const {
  const Problem& p = args.problem;
  const int64_t channel = group * p.taps() + tap, first = ho * p.Wo + wo;
  A y[kSamples], x[kSamples], mask[kSamples];
  int32_t mine[kSamples];
  args.offset.read(image.n, 2 * channel, first, count, y);
  int64_t found = 0;
  const A row = A(tap_row(p, ho, tap));
  for (int64_t i = 0; i < count; ++i) {  // without a branch: which samples are ours can't be predicted
    y[i] += row;
    const int64_t owner = owner_row(y[i], p.H);
    mine[found] = int32_t(i);
    found += (owner >= row0) & (owner < row1);
  }
  if (!found) return;
  args.offset.read(image.n, 2 * channel + 1, first, count, x);
  if (args.mask) args.mask.read(image.n, channel, first, count, mask);
  for (int64_t k = 0; k < found; ++k) {
    const int64_t i = mine[k], to = tile.count++;
    tile.samples.y[to] = y[i];
    tile.samples.x[to] = x[i] + A(tap_column(p, wo + i, tap));
    tile.samples.mask[to] = args.mask ? mask[i] : A(1);
    tile.pixel[to] = first + i;
    if (tile.count == kSamples) batch(tile, image, group, tap);
  }
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
  for (size_t i = 0; i < parts.size(); ++i) {
    const Segment& s = parts[i];
    if (s.deform_group != group) continue;
    for (int64_t r = 0; r < tile.count; ++r) tile.grad_rows[r] = image.grad_output + tile.pixel[r] * p.Co + s.group * Og;
    const Packed<A> b{weight.data() + tap * per_tap + packed_at[i], s.count, Og};
    multiply(tile.grad_rows, tile.count, b, 0, Og, Tile<A>{tile.grad_columns.data(), stride}, false);
    sweep(tile, image, s, stride);
  }
  finish(tile, image, group, tap);
  tile.count = 0;
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
  if (whole < s.count) sweep_rest(tile, image, s, whole, stride);
}

// Fewer channels than a vector holds. Apart, for else they would cost every sample a hundred instructions.
template <class T>
__attribute__((noinline)) void DataPass<T>::sweep_rest(DataTile<A>& tile, const Image<A>& image, const Segment& s,
                                                       int64_t first, int64_t stride) const {
  for (int64_t i = 0; i < tile.count; ++i) {
    const Corner<A> corner(*this, tile, image, s, i);
    const A* const grad = tile.grad_columns.data() + i * stride;
    for (int64_t c = first; c < s.count; ++c)
      for (int q = 0; q < 4; ++q) {
        tile.dots[i][q] += grad[c] * corner.from[q][c];
        corner.to[q][c] += corner.weight[q] * grad[c];
      }
  }
}

// From the dots to the gradients of offset and mask: the derivatives of the bilinear weights.
template <class T>
void DataPass<T>::finish(DataTile<A>& tile, const Image<A>& image, int64_t group, int64_t tap) const {
  const int64_t channel = group * args.problem.taps() + tap;
  for (int64_t i = 0; i < tile.count; ++i) {
    const A* d = tile.dots[i];
    const A ly = tile.samples.ly[i], lx = tile.samples.lx[i], mask = tile.samples.mask[i];
    if (args.grad_offset) {
      const A dy = (d[2] - d[0]) * (1 - lx) + (d[3] - d[1]) * lx, dx = (d[1] - d[0]) * (1 - ly) + (d[3] - d[2]) * ly;
      args.grad_offset.set(image.n, 2 * channel, tile.pixel[i], mask * dy);
      args.grad_offset.set(image.n, 2 * channel + 1, tile.pixel[i], mask * dx);
    }
    if (args.grad_mask) {
      const A value = (1 - ly) * ((1 - lx) * d[0] + lx * d[1]) + ly * ((1 - lx) * d[2] + lx * d[3]);
      args.grad_mask.set(image.n, channel, tile.pixel[i], value);
    }
  }
}
