// Which pixels a bin blends, and how much of each. Included inside a namespace that is compiled for one instruction set.
//
// A bin moves as a whole, so its samples are a lattice of rows and columns, and the sum of their bilinear weights is a
// product: (summed weights of rows) x (summed weights of columns). A bin of 2 x 2 samples reads at most 3 x 3 pixels
// where the samples one by one would read 16, and n x n samples that are a pixel apart (n + 1) x (n + 1).

// One axis of a bin: the pixels that its samples touch, in rising order.
template <class A>
struct Axis {
  std::vector<int64_t> pixel;
  std::vector<A> weight, slope;  // summed over the samples; slope is the derivative of weight by the bin's position
  bool nan;                      // no sample has a position

  // `count` samples of a bin of the given size that starts at `corner`, on a map of `length` pixels.
  void place(Samples<A>& samples, A corner, A size, int64_t count, int64_t length);

 private:
  void add(const Samples<A>& samples, const bool* moves, int64_t count, int64_t length);
  void add(int64_t at, A w, A s) {
    if (!pixel.empty() && pixel.back() == at) {
      weight.back() += w;
      slope.back() += s;
    } else {
      pixel.push_back(at);
      weight.push_back(w);
      slope.push_back(s);
    }
  }
};

// Up to one pixel outside, a sample is moved to the map's border, where its derivative is 0; further out it takes no
// part. What is left is what bilinear.h knows: it is asked along one axis, with the other coordinate on the map.
template <class A>
void Axis<A>::place(Samples<A>& samples, A corner, A size, int64_t count, int64_t length) {
  pixel.clear();
  weight.clear();
  slope.clear();
  nan = corner != corner || size != size;
  if (nan) return;
  const A last = A(length - 1), n = A(count);
  // Of a large bin only the samples that can be on the map are looked at: the first is not far from here.
  A skipped = size > 0 ? std::floor((-2 - corner) * n / size) : A(0);
  skipped = skipped > 0 ? std::min(skipped, n) : A(0);
  bool moves[kSamples], beyond = false;
  for (int64_t j = int64_t(skipped); j < count && !beyond; j += kSamples) {
    const int64_t chunk = std::min(kSamples, count - j);
    for (int64_t i = 0; i < chunk; ++i) {
      const int64_t index = size < 0 ? count - 1 - (j + i) : j + i;  // from left to right
      const A position = corner + (A(index) + A(0.5)) * size / n;
      const bool on_map = position >= -1 && position <= A(length);
      samples.y[i] = !on_map ? A(-2) : position < 0 ? A(0) : position >= last ? last : position;
      samples.x[i] = 0;
      moves[i] = position >= 0 && position < last;
      beyond = position > A(length);
    }
    samples.locate(chunk, length, 1);
    add(samples, moves, chunk, length);
  }
}

template <class A>
void Axis<A>::add(const Samples<A>& samples, const bool* moves, int64_t count, int64_t length) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = samples.y0[i];
    if (at < 0) continue;
    const A l = samples.ly[i], s = moves[i] ? A(1) : A(0);
    // The cell's first pixel may be the last but one so far: then both are there already.
    const size_t n = pixel.size();
    if (n > 1 && pixel[n - 2] == at) {
      weight[n - 2] += 1 - l;
      slope[n - 2] -= s;
    } else {
      add(at, 1 - l, -s);
    }
    if (at + 1 < length) add(at + 1, l, s);
  }
}

// Rounded as torch rounds it: fused with a sum, a product would put a sample on the other side of the map's border.
template <class A>
inline A product(A a, A b) {
  volatile A rounded = a * b;
  return rounded;
}

// A bin, ready to be read or written.
template <class A>
struct Bin {
  Axis<A> rows, columns;
  A share;        // of a sample: 1 / their number
  bool nan;       // its value is NaN, and no pixel is touched

  void place(Samples<A>& samples, const RoiProblem<A>& p, int64_t k, int64_t bin) {
    const RoiBox<A>& box = p.boxes[k];
    const A bin_height = box.height / A(p.ph), bin_width = box.width / A(p.pw);
    A top = box.top, left = box.left;
    if (p.offset) {
      const A* const offset = p.offset + 2 * k * p.bins() + bin;  // x, then y
      left += product(p.gamma * box.width, offset[0]);
      top += product(p.gamma * box.height, offset[p.bins()]);
    }
    rows.place(samples, top + product(A(bin / p.pw), bin_height), bin_height, box.down, p.H);
    columns.place(samples, left + product(A(bin % p.pw), bin_width), bin_width, box.across, p.W);
    const bool any = box.down > 0 && box.across > 0;
    nan = any && (rows.nan || columns.nan);
    if (!any || nan) rows.pixel.clear(), columns.pixel.clear();
    share = any ? 1 / (A(box.down) * A(box.across)) : A(1);
  }
  A mask(const RoiProblem<A>& p, int64_t k, int64_t bin) const { return p.mask ? p.mask[k * p.bins() + bin] : A(1); }
};
