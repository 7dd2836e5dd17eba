// The one definition of sampling: which pixels a position blends, how much of each, and the derivatives.
// Included inside a namespace that is compiled for one instruction set.
//
// A position belongs to the cell that floor() picks; corners off the map count as zero. A position further than one
// pixel outside takes no part in anything; one with a NaN coordinate blends NaN parts of nothing, which is NaN.

constexpr int64_t kSamples = 96;  // as many positions are planned at once, and their columns multiplied at once

template <class A>
struct Samples {
  int32_t y0[kSamples], x0[kSamples];  // the cell's upper left corner; -2 where all corners are off the map
  A ly[kSamples], lx[kSamples];        // the position within its cell, 0 <= l < 1
  A mask[kSamples];

  void place(int64_t i, A y, A x, int64_t H, int64_t W) {
    const bool near = y >= A(-1) && y < A(H) && x >= A(-1) && x < A(W);
    const A nothing = y != y || x != x ? std::numeric_limits<A>::quiet_NaN() : A(0);
    const A fy = std::floor(near ? y : A(-2)), fx = std::floor(near ? x : A(-2));
    y0[i] = int32_t(fy);
    x0[i] = int32_t(fx);
    ly[i] = near ? y - fy : nothing;
    lx[i] = near ? x - fx : nothing;
  }
};

// Corners in the order (y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1).
template <class A, class T>
struct Corners {
  const T* pixel[4][kSamples];  // channels of the corner's pixel, or of `nowhere`
  A weight[4][kSamples];        // the bilinear weight, times the mask

  // `image` is channels-last; `nowhere` holds as many zeros as a pixel has channels.
  void plan(const Samples<A>& s, int64_t count, const T* image, const T* nowhere, int64_t H, int64_t W, int64_t C) {
    for (int corner = 0; corner < 4; ++corner) {
      const int dy = corner / 2, dx = corner % 2;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t y = int64_t(s.y0[i]) + dy, x = int64_t(s.x0[i]) + dx;
        const bool inside = (y >= 0) & (y < H) & (x >= 0) & (x < W);
        pixel[corner][i] = inside ? image + (y * W + x) * C : nowhere;
        const A wy = dy ? s.ly[i] : 1 - s.ly[i], wx = dx ? s.lx[i] : 1 - s.lx[i];
        weight[corner][i] = s.mask[i] * (wy * wx);
      }
    }
  }

  // The samples' channels [channel, channel + count), blended, as one row of a column matrix each.
  void gather(int64_t samples, int64_t channel, int64_t count, A* column, int64_t stride) const {
    for (int64_t i = 0; i < samples; ++i, column += stride) {
      const T *p0 = pixel[0][i] + channel, *p1 = pixel[1][i] + channel;
      const T *p2 = pixel[2][i] + channel, *p3 = pixel[3][i] + channel;
      const A w0 = weight[0][i], w1 = weight[1][i], w2 = weight[2][i], w3 = weight[3][i];
      int64_t c = 0;
      for (; c + kLanes<A> <= count; c += kLanes<A>)
        store(column + c, w0 * load(p0 + c) + w1 * load(p1 + c) + w2 * load(p2 + c) + w3 * load(p3 + c));
      for (; c < count; ++c) column[c] = w0 * A(p0[c]) + w1 * A(p1[c]) + w2 * A(p2[c]) + w3 * A(p3[c]);
    }
  }
};
