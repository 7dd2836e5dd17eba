// Products of bfloat16 in the CPU's own instructions: two numbers to an element, sums in float32.
// Included inside a namespace that is compiled for AVX512-BF16, after gemm.h.
//
// The instructions take subnormal numbers as zero, and give zero for them.

// Two neighbouring depths in 32 bits, the first in the lower half. Where there is no second it is zero on both sides:
// only zero times zero is nothing under all circumstances.
using BFloat16Pair = uint32_t;

template <>
struct ElementOf<BFloat16> {
  using type = BFloat16Pair;
};

template <>
struct Element<BFloat16Pair> {
  using Number = BFloat16;
  static constexpr int64_t numbers = 2;
};

// A vector of bfloat16, widened, to be the elements' first numbers or, after those, their second ones.
inline void put(BFloat16Pair* to, Vector<float> v, int64_t second) {
  const Vector<uint32_t> bits = reinterpret_cast<Vector<uint32_t>>(v);
  store(to, second ? load(to) | (bits & 0xffff0000u) : bits >> 16);
}

template <>
inline void add_product<BFloat16Pair>(Vector<float>& sum, Vector<BFloat16Pair> a, Vector<BFloat16Pair> b) {
  sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// To the nearest bfloat16, ties to even, each in the lower half of its 32 bits.
inline Vector<uint32_t> rounded(Vector<float> v) {
  return (Vector<uint32_t>)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
}

inline void store_pair(BFloat16* to, Pair v) {
  using Words = VectorOf<uint16_t, 2 * kLanes<float>>::type;
  *reinterpret_cast<Words*>(to) = reinterpret_cast<Words>(rounded(v.even) | rounded(v.odd) << 16);
}
