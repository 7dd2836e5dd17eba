// Vectors of one instruction set, by the compiler's own vector types: no intrinsics, so NEON comes for free.
// Included inside a namespace that is compiled for that set; TORCHDCN_VECTOR_BYTES says how wide it is.

template <class A>
constexpr int kLanes = TORCHDCN_VECTOR_BYTES / sizeof(A);

// Of numbers only, so that load() below is no error, but no candidate, for a pointer to anything else.
template <class A, int n = kLanes<A>, class = std::enable_if_t<std::is_arithmetic_v<A>>>
struct VectorOf {
  typedef A type __attribute__((vector_size(n * sizeof(A)), aligned(alignof(A)), may_alias));
};
template <class A>
using Vector = typename VectorOf<A>::type;

template <class A>
inline Vector<A> load(const A* from) {
  return *reinterpret_cast<const Vector<A>*>(from);
}

template <class A>
inline void store(A* to, Vector<A> v) {
  *reinterpret_cast<Vector<A>*>(to) = v;
}

template <class A>
inline Vector<A> broadcast(A a) {
  return a - Vector<A>{};
}

// Lanes of two vectors, counted through both.
template <class A, class Indices>
inline Vector<A> shuffle(Vector<A> a, Vector<A> b, Indices at) {
#if defined(__clang__)
  Vector<A> result;
  for (int i = 0; i < kLanes<A>; ++i) result[i] = at[i] < kLanes<A> ? a[at[i]] : b[at[i] - kLanes<A>];
  return result;
#else
  return __builtin_shuffle(a, b, at);
#endif
}

// 16-bit features become float32 on their way in: bfloat16 is the upper half of a float32; float16 is shifted into
// place and its exponent rebased by a multiplication, which gets subnormals right.
inline Vector<float> load(const BFloat16* from) {
  constexpr int n = kLanes<float>;
  const auto bits = __builtin_convertvector(*reinterpret_cast<const VectorOf<uint16_t, n>::type*>(from), VectorOf<uint32_t, n>::type);
  return reinterpret_cast<Vector<float>>(bits << 16);
}

// Twice as many: those at even places, and those at odd ones, which need no widening.
struct Pair {
  Vector<float> even, odd;
};

inline Pair load_pair(const BFloat16* from) {
  using U = VectorOf<uint32_t, kLanes<float>>::type;
  const U both = reinterpret_cast<U>(*reinterpret_cast<const VectorOf<uint16_t, 2 * kLanes<float>>::type*>(from));
  return {reinterpret_cast<Vector<float>>(both << 16), reinterpret_cast<Vector<float>>(both & 0xffff0000u)};
}

inline void store_pair(float* to, Pair v) {
  constexpr int n = kLanes<float>;
  VectorOf<int32_t, n>::type low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = i / 2 + i % 2 * n;
    high[i] = low[i] + n / 2;
  }
  store(to, shuffle<float>(v.even, v.odd, low));
  store(to + n, shuffle<float>(v.even, v.odd, high));
}

inline Vector<float> load(const Half* from) {
  constexpr int n = kLanes<float>;
  using U = VectorOf<uint32_t, n>::type;
  const U bits = __builtin_convertvector(*reinterpret_cast<const VectorOf<uint16_t, n>::type*>(from), U);
  const U magnitude = bits & 0x7fff;
  const U infinite = reinterpret_cast<U>(magnitude >= 0x7c00) & 0x7f800000u;  // infinity or NaN
  const Vector<float> value = reinterpret_cast<Vector<float>>(magnitude << 13) * 0x1p112f;
  return reinterpret_cast<Vector<float>>(reinterpret_cast<U>(value) | infinite | (bits & 0x8000) << 16);
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline void store(BFloat16* to, Vector<float> v) {
  constexpr int n = kLanes<float>;
  using U = VectorOf<uint32_t, n>::type;
  const U bits = reinterpret_cast<U>(v), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const U kept = v != v ? U{} + 0x7fc0 : rounded;
  *reinterpret_cast<VectorOf<uint16_t, n>::type*>(to) = __builtin_convertvector(kept, VectorOf<uint16_t, n>::type);
}

// A few neighbours, fewer than a vector holds.
template <class A, int n, class T>
inline typename VectorOf<A, n>::type load_few(const T* from) {
  using Few = typename VectorOf<A, n>::type;
  if constexpr (std::is_same_v<A, T>) {
    return *reinterpret_cast<const Few*>(from);
  } else {
    Few few;
    for (int i = 0; i < n; ++i) few[i] = A(from[i]);
    return few;
  }
}

template <class A, int n, class T>
inline void store_few(T* to, typename VectorOf<A, n>::type few) {
  if constexpr (std::is_same_v<A, T>) {
    *reinterpret_cast<decltype(few)*>(to) = few;
  } else {
    T narrow[n];
    for (int i = 0; i < n; ++i) narrow[i] = T(few[i]);
    std::memcpy(to, narrow, sizeof narrow);  // they may be read as something else (bfloat16.h)
  }
}

// Calls piece(std::integral_constant<int, n>, first) for pieces of a power of two that make up count < kLanes<A>.
template <class A, class Piece>
inline void for_few(int64_t count, const Piece& piece) {
  int64_t first = 0;
  const auto take = [&](auto n) {
    if constexpr (n < kLanes<A>)
      if (count & n) {
        piece(n, first);
        first += n;
      }
  };
  take(std::integral_constant<int, 8>{});
  take(std::integral_constant<int, 4>{});
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 1>{});
}

// Adds four vectors' sums to four numbers, in one fixed order: down to four lanes each, then those.
template <class A>
inline void add_lanes(const Vector<A> (&v)[4], A (&sums)[4]) {
  constexpr int n = kLanes<A>, half = n < 4 ? n : 4;
  using Few = typename VectorOf<A, half>::type;
  for (int q = 0; q < 4; ++q) {
    A lanes[n];
    store(lanes, v[q]);
    Few few = *reinterpret_cast<const Few*>(lanes);
    for (int i = half; i < n; i += half) few += *reinterpret_cast<const Few*>(lanes + i);
    if constexpr (half == 4)
      sums[q] += (few[0] + few[2]) + (few[1] + few[3]);
    else
      sums[q] += few[0] + few[1];
  }
}

// A square block: vector i of the result holds lane i of every vector. log2(lanes) rounds, each of which interleaves the
// first half of the vectors with the second.
template <class A>
inline void transpose(Vector<A> (&block)[kLanes<A>]) {
  constexpr int n = kLanes<A>;
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  using Indices = typename VectorOf<Int, n>::type;
  Indices low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = i / 2 + i % 2 * n;
    high[i] = low[i] + n / 2;
  }
  for (int round = 1; round < n; round *= 2) {
    Vector<A> next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = shuffle<A>(block[i], block[i + n / 2], low);
      next[2 * i + 1] = shuffle<A>(block[i], block[i + n / 2], high);
    }
    for (int i = 0; i < n; ++i) block[i] = next[i];
  }
}
