// Products for groups narrower than a vector, depthwise convolution among them, where packed panels would be mostly
// padding. Included inside a namespace that is compiled for one instruction set.
//
// With n inputs and n outputs to a group, and n dividing the lanes, a vector of outputs needs one vector of inputs only:
// lane o takes its group's inputs o / n * n + j, for j < n. That is n permutations and n FMAs for a vector. Channels
// never meet those of another group, not even times zero: an infinity stays in its group.

// Whether a problem's groups are such.
template <class A>
bool is_narrow(const Problem& p) {
  const int64_t n = p.group_in();
  return p.groups > 1 && n == p.group_out() && n < kLanes<A> && kLanes<A> % n == 0 && p.deform_channels() % n == 0;
}

// `count` neighbours, at most a vector of them; zeros after those.
template <class A>
inline Vector<A> load_up_to(const A* from, int64_t count) {
  if (count >= kLanes<A>) return load(from);
  A all[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = from[i];
  return load(all);
}

template <class A>
inline void store_up_to(A* to, Vector<A> v, int64_t count) {
  if (count >= kLanes<A>) return store(to, v);
  A all[kLanes<A>];
  store(all, v);
  for (int64_t i = 0; i < count; ++i) to[i] = all[i];
}

template <class A>
struct Lanes {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  using Indices = typename VectorOf<Int, kLanes<A>>::type;

  // Lane o of the result is lane o / n * n + j.
  template <int n>
  static Indices of(int j) {
    Indices at;
    for (int o = 0; o < kLanes<A>; ++o) at[o] = o / n * n + j;
    return at;
  }

  static Vector<A> permute(Vector<A> v, Indices at) {
#if defined(__clang__)
    Vector<A> result;
    for (int o = 0; o < kLanes<A>; ++o) result[o] = v[at[o]];
    return result;
#else
    return __builtin_shuffle(v, at);
#endif
  }
};

// Calls function(std::integral_constant<int, n>) for the n that is_narrow lets pass.
template <class A, class Function>
void for_narrow(int64_t n, const Function& function) {
  const auto take = [&](auto width) {
    if constexpr (width < kLanes<A>)
      if (n == width) function(width);
  };
  take(std::integral_constant<int, 1>{});
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 4>{});
  take(std::integral_constant<int, 8>{});
}

// Of the weight [C, n, kh, kw] of narrow groups the channels [first, first + count), for every tap: to each vector of
// outputs n vectors, the weights of inputs j. Transposed, the vectors are of inputs, and hold the weights of outputs j.
template <class T>
void pack_narrow(const T* weight, int64_t K, int64_t n, int64_t first, int64_t count, bool transposed, Sum<T>* packed,
                 int64_t tap_stride) {
  using A = Sum<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < padded<A>(count); ++c)
      for (int64_t j = 0; j < n; ++j) {
        const int64_t mine = first + c, other = mine / n * n + j, o = transposed ? other : mine, i = transposed ? mine : other;
        packed[k * tap_stride + (c / lanes * n + j) * lanes + c % lanes] = c < count ? A(weight[(o * n + i % n) * K + k]) : A(0);
      }
}

// C (+)= A times one tap's weights, over `channels` channels. Reads and writes no more than these, at either end.
template <class A, int n, class Rows>
void multiply_narrow(const Rows& rows, int64_t count, int64_t channels, const A* weight, Tile<A> c, bool accumulate) {
  constexpr int64_t lanes = kLanes<A>;
  typename Lanes<A>::Indices at[n];
  for (int j = 0; j < n; ++j) at[j] = Lanes<A>::template of<n>(j);
  for (int64_t first = 0; first < channels; first += lanes) {
    const int64_t left = channels - first;
    Vector<A> w[n];
    TORCHDCN_UNROLL for (int j = 0; j < n; ++j) w[j] = load(weight + first * n + j * lanes);
    for (int64_t r = 0; r < count; ++r) {
      const Vector<A> a = load_up_to(rows(r) + first, left);
      A* const to = c.data + r * c.stride + first;
      Vector<A> sum = accumulate ? load_up_to(to, left) : Vector<A>{};
      TORCHDCN_UNROLL for (int j = 0; j < n; ++j) sum += w[j] * (n == 1 ? a : Lanes<A>::permute(a, at[j]));
      store_up_to(to, sum, left);
    }
  }
}

// The gradient of one tap's weights: sums [vector of outputs, n, lanes] += grad_output times columns.
template <class A, int n>
void add_narrow(const A* grad, int64_t grad_stride, const A* columns, int64_t stride, int64_t count, int64_t channels,
                A* sums) {
  constexpr int64_t lanes = kLanes<A>;
  typename Lanes<A>::Indices at[n];
  for (int j = 0; j < n; ++j) at[j] = Lanes<A>::template of<n>(j);
  for (int64_t first = 0; first < channels; first += lanes) {
    const int64_t left = channels - first;
    Vector<A> sum[n];
    TORCHDCN_UNROLL for (int j = 0; j < n; ++j) sum[j] = load(sums + first * n + j * lanes);
    for (int64_t r = 0; r < count; ++r) {
      const Vector<A> g = load_up_to(grad + r * grad_stride + first, left);
      const Vector<A> a = load_up_to(columns + r * stride + first, left);
      TORCHDCN_UNROLL for (int j = 0; j < n; ++j) sum[j] += g * (n == 1 ? a : Lanes<A>::permute(a, at[j]));
    }
    TORCHDCN_UNROLL for (int j = 0; j < n; ++j) store(sums + first * n + j * lanes, sum[j]);
  }
}
