// Between a tensor's layout and the kernels' own: rows of channels, summed type.
// Included inside a namespace that is compiled for one instruction set.

// One image, as the backward passes want it: channels-last, summed type.
template <class A>
struct Image {
  int64_t n;
  const A *grad_output, *input;
  A* grad_input;  // null where not wanted
};

// A block of lanes x lanes elements, from lines of neighbours to lines across them. Half has no vectors to be stored as.
template <class A, class From, class To>
inline void transpose_block(const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  Vector<A> block[kLanes<A>];
  for (int i = 0; i < kLanes<A>; ++i) block[i] = load(from + i * from_stride);
  transpose<A>(block);
  for (int i = 0; i < kLanes<A>; ++i) store(to + i * to_stride, block[i]);
}

// from[i * from_stride + j] to to[j * to_stride + i], for i < lines and j < count.
template <class From, class To>
void transpose_all(const From* from, int64_t from_stride, int64_t lines, int64_t count, To* to, int64_t to_stride) {
  using A = Sum<From>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr bool vectors = std::is_same_v<A, Sum<To>> && !std::is_same_v<To, Half>;
  for (int64_t i = 0; i < lines; i += lanes)
    for (int64_t j = 0; j < count; j += lanes) {
      if constexpr (vectors)
        if (i + lanes <= lines && j + lanes <= count) {
          transpose_block<A>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
          continue;
        }
      for (int64_t y = i; y < std::min(lines, i + lanes); ++y)
        for (int64_t x = j; x < std::min(count, j + lanes); ++x) to[x * to_stride + y] = To(A(from[y * from_stride + x]));
    }
}

// from[i] to to[i], for i < count.
template <class From, class To>
void convert_all(const From* from, int64_t count, To* to) {
  using A = Sum<From>;
  int64_t i = 0;
  if constexpr (!std::is_same_v<To, Half>)
    for (; i + kLanes<A> <= count; i += kLanes<A>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = To(A(from[i]));
}

// Pixels [first, first + count) of an image to rows of channels.
template <class T, class A>
void to_rows(const View<const T>& view, int64_t n, int64_t first, int64_t count, int64_t channels, A* rows) {
  const T* image = view.at(n) + first * view.pixel;
  if (!view.channels_last()) return transpose_all(image, view.channel, channels, count, rows, channels);
  for (int64_t p = 0; p < count; ++p) convert_all(image + p * view.pixel, channels, rows + p * channels);
}

// Rows back to the pixels [first, first + count), and to the channels from `channel` on.
template <class A, class T>
void from_rows(const A* rows, int64_t stride, const View<T>& view, int64_t n, int64_t channel, int64_t channels,
               int64_t first, int64_t count) {
  T* image = view.at(n) + channel * view.channel + first * view.pixel;
  if (!view.channels_last()) return transpose_all(rows, stride, count, channels, image, view.channel);
  for (int64_t p = 0; p < count; ++p) convert_all(rows + p * stride, channels, image + p * view.pixel);
}

// A range of pixels, cut so that every piece is worth a task.
template <class Piece>
void for_each_piece(int64_t pixels, int64_t channels, const Piece& piece) {
  const int64_t size = std::max<int64_t>(16, 32768 / channels);
  for_each_task((pixels + size - 1) / size, [&](int64_t i) { piece(i * size, std::min(size, pixels - i * size)); });
}

template <class T, class A>
void image_to_rows(const View<const T>& view, int64_t n, int64_t pixels, int64_t channels, A* rows) {
  for_each_piece(pixels, channels, [&](int64_t first, int64_t count) {
    to_rows(view, n, first, count, channels, rows + first * channels);
  });
}

template <class A, class T>
void image_from_rows(const A* rows, const View<T>& view, int64_t n, int64_t pixels, int64_t channels) {
  for_each_piece(pixels, channels, [&](int64_t first, int64_t count) {
    from_rows(rows + first * channels, channels, view, n, 0, channels, first, count);
  });
}

template <class A>
void fill_zero(A* data, int64_t count) {
  for_each_piece(count, 1, [&](int64_t first, int64_t n) { std::memset(data + first, 0, size_t(n) * sizeof(A)); });
}
