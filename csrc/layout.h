// Between a tensor's layout and the kernels' own: rows of channels, summed type.
// Included inside a namespace that is compiled for one instruction set.

// One image, as the backward passes want it: channels-last, summed type.
template <class A>
struct Image {
  int64_t n;
  const A *grad_output, *input;
  A* grad_input;  // null where not wanted
};

constexpr int64_t kBlock = 16;  // so that both sides of a transposition move by whole cache lines

// Pixels [first, first + count) of an image to rows of channels.
template <class T, class A>
void to_rows(const View<const T>& view, int64_t n, int64_t first, int64_t count, int64_t channels, A* rows) {
  const T* image = view.at(n) + first * view.pixel;
  for (int64_t p0 = 0; p0 < count; p0 += kBlock)
    for (int64_t c0 = 0; c0 < channels; c0 += kBlock)
      for (int64_t p = p0; p < std::min(count, p0 + kBlock); ++p)
        for (int64_t c = c0; c < std::min(channels, c0 + kBlock); ++c)
          rows[p * channels + c] = A(image[c * view.channel + p * view.pixel]);
}

// Rows back to the pixels [first, first + count), and to the channels from `channel` on.
template <class A, class T>
void from_rows(const A* rows, int64_t stride, const View<T>& view, int64_t n, int64_t channel, int64_t channels,
               int64_t first, int64_t count) {
  T* image = view.at(n) + channel * view.channel + first * view.pixel;
  if constexpr (!std::is_same_v<T, Half>)  // which has no vector conversion
    if (view.channels_last() && channels % kLanes<A> == 0) {
      for (int64_t p = 0; p < count; ++p)
        for (int64_t c = 0; c < channels; c += kLanes<A>) store(image + p * view.pixel + c, load(rows + p * stride + c));
      return;
    }
  for (int64_t p0 = 0; p0 < count; p0 += kBlock)
    for (int64_t c0 = 0; c0 < channels; c0 += kBlock)
      for (int64_t c = c0; c < std::min(channels, c0 + kBlock); ++c)
        for (int64_t p = p0; p < std::min(count, p0 + kBlock); ++p)
          image[c * view.channel + p * view.pixel] = T(rows[p * stride + c]);
}

// A range of pixels, cut so that every piece is worth a task.
template <class Piece>
void for_each_piece(int64_t pixels, int64_t channels, const Piece& piece) {
  const int64_t size = std::max<int64_t>(kBlock, 32768 / channels);
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
