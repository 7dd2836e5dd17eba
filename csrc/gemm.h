// A small matrix product in registers: C (+)= A B, with B packed into panels as wide as the accumulators.
// Included inside a namespace that is compiled for one instruction set.
//
// A and B are made of elements E, C of Sum<E>. An element is a number of the summed type; bfloat16.h has one that isn't.
//
// A block of kRows x kVectors partial sums stays in registers over the whole depth: 24 of AVX-512's and NEON's 32
// registers, 12 of AVX2's and SSE's 16. In what order an element is summed depends on the depth alone, so it does not
// change a bit how rows and panels are dealt out to threads.

constexpr int kRows = 6;
constexpr int kVectors = TORCHDCN_VECTOR_REGISTERS >= 32 ? 4 : 2;
// A full float panel of this depth stays in L1 while rows stream by: 32 KB of AVX-512's, 16 KB of AVX2's.
constexpr int64_t kDepth = kVectors == 4 ? 128 : 256;

template <class E>
constexpr int64_t kPanel = kVectors * kLanes<E>;  // columns of a full panel; the last may be narrower

template <class E>
inline int64_t padded(int64_t columns) {  // to whole vectors
  return (columns + kLanes<E> - 1) / kLanes<E> * kLanes<E>;
}

// What the features T are multiplied as.
template <class T>
struct ElementOf {
  using type = Sum<T>;
};

// What an element is made of, and how many of those.
template <class E>
struct Element {
  using Number = E;
  static constexpr int64_t numbers = 1;
};

template <class E>
inline int64_t element_count(int64_t depth) {
  return (depth + Element<E>::numbers - 1) / Element<E>::numbers;
}

// A vector of numbers to be the element's only ones.
template <class E>
inline void put(E* to, Vector<E> v, int64_t) {
  store(to, v);
}

template <class E>
inline void add_product(Vector<Sum<E>>& sum, Vector<E> a, Vector<E> b) {
  sum += a * b;
}

// B in panels: each holds its columns for all depths, depth by depth, padded with zeros to whole vectors.
template <class E>
struct Packed {
  E* data;
  int64_t columns, depth;

  int64_t width(int64_t column) const { return std::min(kPanel<E>, padded<E>(columns) - column); }
  E* at(int64_t column, int64_t d) const { return data + column * depth + d * width(column); }
  static int64_t size(int64_t columns, int64_t depth) { return padded<E>(columns) * depth; }
};

// A, either as rows that may lie anywhere, or stored depth by depth, the rows side by side.
template <class E>
struct ByRow {
  const E* const* rows;
  int64_t depth = 0;  // where in each row to start

  template <int count>
  struct Cursor {
    const E* row[count];
    Cursor(ByRow a, int64_t r0) {
      for (int r = 0; r < count; ++r) row[r] = a.rows[r0 + r] + a.depth;
    }
    E operator()(int r, int64_t d) const { return row[r][d]; }
  };
};
template <class A>
struct ByDepth {
  const A* data;
  int64_t stride;

  template <int count>
  struct Cursor {
    const A* first;
    int64_t stride;
    Cursor(ByDepth a, int64_t r0) : first(a.data + r0), stride(a.stride) {}
    A operator()(int r, int64_t d) const { return first[d * stride + r]; }
  };
};

template <class A>
struct Tile {  // of C; rows are wide enough for whole vectors
  A* data;
  int64_t stride;
};

// Unrolled by order: left to itself the compiler keeps `sum` in memory at both ends of the loop.
#define TORCHDCN_UNROLL _Pragma("GCC unroll 8")

// `ahead` is fetched into L2 meanwhile, one vector per depth.
template <class E, int rows, int vectors, class Left>
inline void multiply_registers(Left a, int64_t r0, int64_t depth, const E* b, const E* ahead, Tile<Sum<E>> c,
                               bool accumulate) {
  using A = Sum<E>;
  constexpr int64_t lanes = kLanes<A>;
  A* const first = c.data + r0 * c.stride;
  const typename Left::template Cursor<rows> left(a, r0);
  Vector<A> sum[rows][vectors];
  TORCHDCN_UNROLL for (int r = 0; r < rows; ++r)
    TORCHDCN_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] = Vector<A>{};
  // Unrolled by four: 2 to 4 % of a forward pass on a CPU with AVX2. By 16 it is slower: the code no longer fits.
  _Pragma("GCC unroll 4") for (int64_t d = 0; d < depth; ++d) {
    __builtin_prefetch(ahead + d * vectors * lanes, 0, 2);
    Vector<E> right[vectors];
    TORCHDCN_UNROLL for (int v = 0; v < vectors; ++v) right[v] = load(b + (d * vectors + v) * lanes);
    TORCHDCN_UNROLL for (int r = 0; r < rows; ++r) {
      const Vector<E> scalar = broadcast(left(r, d));
      TORCHDCN_UNROLL for (int v = 0; v < vectors; ++v) add_product<E>(sum[r][v], scalar, right[v]);
    }
  }
  if (accumulate)
    TORCHDCN_UNROLL for (int r = 0; r < rows; ++r)
      TORCHDCN_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] += load(first + r * c.stride + v * lanes);
  TORCHDCN_UNROLL for (int r = 0; r < rows; ++r)
    TORCHDCN_UNROLL for (int v = 0; v < vectors; ++v) store(first + r * c.stride + v * lanes, sum[r][v]);
}

// All rows of one panel: blocks of kRows, then what is left over. The first blocks fetch a vector each of `next`, the
// panel that comes after this one, which may have to come from far away.
template <class E, int vectors, class Left>
void multiply_panel(Left a, int64_t rows, int64_t depth, const E* b, const E* next, Tile<Sum<E>> c, bool accumulate) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    const E* ahead = next + std::min<int64_t>(r / kRows, vectors - 1) * kLanes<E>;
    multiply_registers<E, kRows, vectors>(a, r, depth, b, ahead, c, accumulate);
  }
  switch (rows - r) {
    case 5: return multiply_registers<E, 5, vectors>(a, r, depth, b, next, c, accumulate);
    case 4: return multiply_registers<E, 4, vectors>(a, r, depth, b, next, c, accumulate);
    case 3: return multiply_registers<E, 3, vectors>(a, r, depth, b, next, c, accumulate);
    case 2: return multiply_registers<E, 2, vectors>(a, r, depth, b, next, c, accumulate);
    case 1: return multiply_registers<E, 1, vectors>(a, r, depth, b, next, c, accumulate);
    default: return;
  }
}

template <class E, class Left>
void multiply_panel(int64_t width, Left a, int64_t rows, int64_t depth, const E* b, const E* next, Tile<Sum<E>> c,
                    bool accumulate) {
  static_assert(kVectors == 2 || kVectors == 4);
  if constexpr (kVectors == 4) {
    if (width == 4 * kLanes<E>) return multiply_panel<E, 4>(a, rows, depth, b, next, c, accumulate);
    if (width == 3 * kLanes<E>) return multiply_panel<E, 3>(a, rows, depth, b, next, c, accumulate);
  }
  if (width == 2 * kLanes<E>) return multiply_panel<E, 2>(a, rows, depth, b, next, c, accumulate);
  return multiply_panel<E, 1>(a, rows, depth, b, next, c, accumulate);
}

// C (+)= A B over B's depths [first, first + depth), of which A holds just these.
template <class E>
void multiply(const E* const* a, int64_t rows, Packed<E> b, int64_t first, int64_t depth, Tile<Sum<E>> c,
              bool accumulate) {
  for (int64_t d = 0; d < depth; d += kDepth) {
    const int64_t run = std::min(kDepth, depth - d);
    for (int64_t column = 0; column < b.columns; column += kPanel<E>) {
      const bool more = column + kPanel<E> < b.columns;
      const int64_t after = first + d + run < b.depth ? first + d + run : 0;
      const E* next = more ? b.at(column + kPanel<E>, first + d) : b.at(0, after);
      multiply_panel(b.width(column), ByRow<E>{a, d}, rows, run, b.at(column, first + d), next,
                     Tile<Sum<E>>{c.data + column, c.stride}, accumulate || d > 0);
    }
  }
}
