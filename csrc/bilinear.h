// The one definition of sampling: which pixels a position blends, how much of each, and the derivatives.
// Included inside a namespace that is compiled for one instruction set.
//
// A position belongs to the cell that floor() picks; corners off the map count as zero. A position further than one
// pixel outside takes no part in anything; one with a NaN coordinate blends NaN parts of nothing, which is NaN.

// As many positions are planned, gathered and multiplied at once: whole vectors, and as much as L2 has room for beside
// the weights, of which CPUs without AVX-512 tend to have less.
constexpr int64_t kSamples = TORCHDCN_VECTOR_REGISTERS >= 32 ? 192 : 144;

// Positions, and once located, their cells.
template <class A>
struct Samples {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  alignas(64) A y[kSamples], x[kSamples], mask[kSamples];
  alignas(64) Int y0[kSamples], x0[kSamples];  // the cell's upper left corner; -2 where all corners are off the map
  alignas(64) A ly[kSamples], lx[kSamples];    // the position within its cell, 0 <= l < 1

  void locate(int64_t count, int64_t H, int64_t W) {
    using Ints = typename VectorOf<Int, kLanes<A>>::type;
    const Vector<A> nan = broadcast(std::numeric_limits<A>::quiet_NaN()), zero = {}, off_map = zero - 2;
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const Vector<A> vy = load(y + i), vx = load(x + i);
      const Ints near = (vy >= -1) & (vy < A(H)) & (vx >= -1) & (vx < A(W));
      const Vector<A> sy = near ? vy : off_map, sx = near ? vx : off_map;
      Ints iy = __builtin_convertvector(sy, Ints), ix = __builtin_convertvector(sx, Ints);  // towards zero, then down
      iy += sy < __builtin_convertvector(iy, Vector<A>);
      ix += sx < __builtin_convertvector(ix, Vector<A>);
      const Vector<A> nothing = (vy != vy) | (vx != vx) ? nan : zero;
      store(ly + i, near ? sy - __builtin_convertvector(iy, Vector<A>) : nothing);
      store(lx + i, near ? sx - __builtin_convertvector(ix, Vector<A>) : nothing);
      std::memcpy(y0 + i, &iy, sizeof iy);
      std::memcpy(x0 + i, &ix, sizeof ix);
    }
  }
};

// Corners in the order (y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1).
template <class A, class T>
struct Corners {
  struct Blend {
    const T* pixel[4];  // the corner's channels, or `nowhere`
    A weight[4];        // the bilinear weight, times the mask
  } sample[kSamples];

  // `image` is channels-last; `nowhere` holds as many zeros as a pixel has channels.
  void plan(const Samples<A>& s, int64_t count, const T* image, const T* nowhere, int64_t H, int64_t W, int64_t C) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t y = s.y0[i], x = s.x0[i];
      const bool top = y >= 0, bottom = y + 1 >= 0 && y + 1 < H, left = x >= 0, right = x + 1 >= 0 && x + 1 < W;
      const T* const first = image + (y * W + x) * C;
      const A ly = s.ly[i], lx = s.lx[i], hy = 1 - ly, hx = 1 - lx, mask = s.mask[i];
      Blend& b = sample[i];
      b.pixel[0] = top & left ? first : nowhere;
      b.pixel[1] = top & right ? first + C : nowhere;
      b.pixel[2] = bottom & left ? first + W * C : nowhere;
      b.pixel[3] = bottom & right ? first + (W + 1) * C : nowhere;
      // A corner that has no weight has none under an infinite mask either.
      const A weight[4] = {hy * hx, hy * lx, ly * hx, ly * lx};
      for (int q = 0; q < 4; ++q) b.weight[q] = weight[q] == 0 ? A(0) : mask * weight[q];
    }
  }

  // The samples' channels [channel, channel + count), blended, as one row of a column matrix each. `Number` is A, or
  // what the blend is rounded to.
  template <class Number>
  void gather(int64_t samples, int64_t channel, int64_t count, Number* columns, int64_t stride) const {
    constexpr int64_t lanes = kLanes<A>;
    const int64_t whole = count / lanes * lanes;
    for (int64_t i = 0; i < samples; ++i) {
      const Blend& b = sample[i];
      const T *p0 = b.pixel[0] + channel, *p1 = b.pixel[1] + channel;
      const T *p2 = b.pixel[2] + channel, *p3 = b.pixel[3] + channel;
      const A w0 = b.weight[0], w1 = b.weight[1], w2 = b.weight[2], w3 = b.weight[3];
      Number* const column = columns + i * stride;
      int64_t c = 0;
      if constexpr (std::is_same_v<T, BFloat16>)
        for (; c + 2 * lanes <= whole; c += 2 * lanes) {
          const Pair q0 = load_pair(p0 + c), q1 = load_pair(p1 + c), q2 = load_pair(p2 + c), q3 = load_pair(p3 + c);
          store_pair(column + c, {w0 * q0.even + w1 * q1.even + w2 * q2.even + w3 * q3.even,
                                  w0 * q0.odd + w1 * q1.odd + w2 * q2.odd + w3 * q3.odd});
        }
      for (; c < whole; c += lanes)
        store(column + c, w0 * load(p0 + c) + w1 * load(p1 + c) + w2 * load(p2 + c) + w3 * load(p3 + c));
    }
    if (whole < count) gather_rest(samples, channel, count, columns, stride);
  }

  // What whole vectors leave over: one more vector that overlaps them, or pieces of one. Apart, for else it would cost
  // every sample a dozen instructions.
  template <class Number>
  __attribute__((noinline)) void gather_rest(int64_t samples, int64_t channel, int64_t count, Number* columns,
                                             int64_t stride) const {
    if (count > kLanes<A>) return gather(samples, channel + count - kLanes<A>, kLanes<A>, columns + count - kLanes<A>, stride);
    for_few<A>(count, [&](auto n, int64_t first) {
      using Few = typename VectorOf<A, n>::type;
      for (int64_t i = 0; i < samples; ++i) {
        const Blend& b = sample[i];
        Few sum = {};
        for (int q = 0; q < 4; ++q) sum += b.weight[q] * load_few<A, n>(b.pixel[q] + channel + first);
        store_few<A, n>(columns + i * stride + first, sum);
      }
    });
  }
};
