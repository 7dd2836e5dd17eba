// The AVX-512 kernels against the definition, as the only process of an emulated machine (emulate.py).
#include <cstdarg>
#include <cstdio>
#include <random>
#include <string>

#include <sys/reboot.h>
#include <unistd.h>

#include "problem.h"

namespace torchdcn {

// Full of NaN: what a kernel forgets to write can't pass for a zero.
void* aligned_memory(size_t bytes) {
  const size_t whole = (bytes + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, whole);
  if (!memory) throw OutOfMemory(bytes);
  return std::memset(memory, 0xff, whole);
}

namespace {

using Numbers = std::vector<double>;

struct Case {
  std::string name;
  int64_t C = 8, Co = 6, H = 9, W = 11;
  int64_t kernel = 3, stride = 1, padding = 1, dilation = 1, groups = 1, deform_groups = 1;
  double spread = 2;  // of the offsets, in pixels

  Problem problem() const {
    const auto out = [&](int64_t n) { return (n + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1; };
    return {2,      C,       H,       W,        Co,       kernel, kernel,        out(H), out(W), stride,
            stride, padding, padding, dilation, dilation, groups, deform_groups};
  }
};

const Case kCases[] = {
    {"plain"},
    {"far", 8, 6, 9, 11, 3, 1, 1, 1, 1, 1, 9},
    {"stride and dilation", 8, 6, 9, 11, 3, 2, 2, 2},
    {"1x1", 4, 6, 9, 11, 1, 1, 0},
    {"7x7", 3, 6, 9, 11, 7, 1, 3},
    {"1 channel", 1, 5},
    {"33 to 17 channels", 33, 17},
    {"24 to 67 channels", 24, 67},
    {"67 to 24 channels", 67, 24},
    {"whole panels", 64, 128, 7, 20},
    {"601 channels", 601, 4, 4, 5},
    {"deformable groups of 5", 35, 6, 9, 11, 3, 1, 1, 1, 1, 7},
    {"groups of 7", 21, 9, 9, 11, 3, 1, 1, 1, 3},
    {"groups of 5 that cross deformable groups of 3", 15, 9, 9, 11, 3, 1, 1, 1, 3, 5},
    {"depthwise", 20, 20, 9, 11, 3, 1, 1, 1, 20, 2},
    {"300 groups of 1 to 2", 300, 600, 4, 5, 3, 1, 1, 1, 300},
    {"tall", 2, 6, 70, 3},
};

// In bfloat16's digits, which every dtype has; contiguous.
struct Tensors {
  Problem p;
  Numbers input, offset, mask, weight;

  explicit Tensors(const Case& c) : p(c.problem()) {
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    const auto draw = [&](int64_t count, auto&& of) {
      Numbers numbers(count);
      for (double& number : numbers) number = of(normal(random));
      return numbers;
    };
    const auto bfloat16 = [](float v) { return float(BFloat16(v)); };
    const int64_t positions = p.N * p.deform_groups * p.taps() * p.out_pixels();
    input = draw(p.N * p.C * p.in_pixels(), bfloat16);
    offset = draw(2 * positions, [&](float v) { return float(c.spread) * v; });
    mask = draw(positions, [](float v) { return 1 / (1 + std::exp(-v)); });
    weight = draw(p.Co * p.group_in() * p.taps(), bfloat16);
  }
};

Numbers definition(const Tensors& t) {
  const Problem& p = t.p;
  const int64_t K = p.taps(), P = p.out_pixels(), Cg = p.group_in();
  Numbers output(p.N * p.Co * P), column(p.C * K);
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t i = 0; i < P; ++i) {
      for (int64_t c = 0; c < p.C; ++c)
        for (int64_t k = 0; k < K; ++k) {
          const int64_t at = (n * p.deform_groups + c / p.deform_channels()) * K + k;
          const double y = i / p.Wo * p.stride_h - p.padding_h + k / p.kw * p.dilation_h + t.offset[2 * at * P + i];
          const double x = i % p.Wo * p.stride_w - p.padding_w + k % p.kw * p.dilation_w + t.offset[(2 * at + 1) * P + i];
          double sample = 0;
          for (int64_t row : {int64_t(std::floor(y)), int64_t(std::floor(y)) + 1})
            for (int64_t col : {int64_t(std::floor(x)), int64_t(std::floor(x)) + 1})
              if (row >= 0 && row < p.H && col >= 0 && col < p.W)
                sample += (1 - std::abs(y - row)) * (1 - std::abs(x - col)) * t.input[((n * p.C + c) * p.H + row) * p.W + col];
          column[c * K + k] = sample * t.mask[at * P + i];
        }
      for (int64_t o = 0; o < p.Co; ++o)
        for (int64_t d = 0; d < Cg * K; ++d)
          output[(n * p.Co + o) * P + i] += t.weight[o * Cg * K + d] * column[o / p.group_out() * Cg * K + d];
    }
  return output;
}

// What a kernel makes of it, with `odd` at an address that only a single feature is aligned to.
template <class T, class Forward>
Numbers run(const Tensors& t, bool channels_last, bool odd, const Forward& forward) {
  using A = Sum<T>;
  const Problem& p = t.p;
  const int64_t K = p.taps(), P = p.out_pixels(), Q = p.in_pixels();
  const auto place = [&](int64_t i, int64_t C, int64_t pixels) {
    return channels_last ? i / (C * pixels) * C * pixels + i % pixels * C + i / pixels % C : i;
  };
  const auto view = [&](auto* data, int64_t C, int64_t pixels) {
    return View<std::remove_pointer_t<decltype(data)>>{data, C * pixels, channels_last ? 1 : pixels, channels_last ? C : 1};
  };
  std::vector<T> input(t.input.size() + 1), output(p.N * p.Co * P), weight;
  for (size_t i = 0; i < t.input.size(); ++i) input[odd + place(i, p.C, Q)] = T(A(t.input[i]));
  for (double w : t.weight) weight.push_back(T(A(w)));
  std::vector<A> offset(t.offset.begin(), t.offset.end()), mask(t.mask.begin(), t.mask.end());
  const auto field = [&](std::vector<A>& of, int64_t channels) {
    return Field<A>{Field<A>::Kind::sum, {reinterpret_cast<char*>(of.data()), channels * P, P, 1}};
  };
  const T* const from = input.data() + odd;
  const int64_t positions = p.deform_groups * K;
  forward(ForwardArguments<T>{p, view(from, p.C, Q), field(offset, 2 * positions), field(mask, positions), weight.data(),
                              view(output.data(), p.Co, P)});
  Numbers found(output.size());
  for (size_t i = 0; i < found.size(); ++i) found[i] = double(A(output[place(i, p.Co, P)]));
  return found;
}

bool all_passed = true;

void check(bool passed, const char* format, ...) {
  all_passed &= passed;
  std::printf(passed ? "passed: " : "FAILED: ");
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::puts("");
}

// The largest difference, as a part of the largest number; a NaN is infinitely far.
double distance(const Numbers& found, const Numbers& expected) {
  double largest = 1e-30, worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(found[i] - expected[i]);
    worst = std::max(worst, std::isnan(difference) ? INFINITY : difference);
    largest = std::max(largest, std::abs(expected[i]));
  }
  return worst / largest;
}

template <class T, class Forward>
void check_near(const char* isa, double tolerance, const Forward& forward) {
  for (const Case& c : kCases) {
    const Tensors t(c);
    const Numbers expected = definition(t);
    for (bool last : {true, false}) {
      const Numbers found = run<T>(t, last, false, forward);
      const double far = distance(found, expected);
      torch::stable::threads = 3;
      const bool same = run<T>(t, last, true, forward) == found;  // in other tiles, elsewhere
      torch::stable::threads = 1;
      const char* layout = last ? "channels-last" : "contiguous";
      check(far < tolerance && same, "%s, %s, %s: %.1e away%s", isa, c.name.c_str(), layout, far, same ? "" : ", other bits in other tiles");
    }
  }
}

// What a pair of channels is filled up with must not show: zero times infinity is NaN.
template <class Forward>
void check_values(const Forward& forward) {
  Tensors t({"", 14, 6, 5, 5, 3, 1, 1, 1, 2});
  for (double bad : {double(INFINITY), double(NAN)}) {
    for (int64_t i = 0; i < 25; ++i) t.input[6 * 25 + i] = bad;  // the first group's last channel, which has no second
    const Numbers found = run<BFloat16>(t, true, false, forward);
    bool stays = true;
    for (size_t i = 0; i < found.size(); ++i) stays &= std::isfinite(found[i]) == (i >= 3 * 25);
    check(stays, "avx512_bf16: %g in a channel reaches the outputs of its group and image, and no others", bad);
  }
  t = Tensors({"", 3, 20, 5, 5, 1, 1, 0, 1, 1, 1, 0});
  for (double& v : t.input) v = 1 + std::abs(v);
  t.weight[2] = INFINITY;
  Numbers found = run<BFloat16>(t, true, false, forward);
  bool right = true;
  for (size_t i = 0; i < found.size(); ++i) right &= i % 500 < 25 ? found[i] == INFINITY : std::isfinite(found[i]);
  check(right, "avx512_bf16: an infinite weight makes its output infinite, and nothing NaN");
  for (double& v : t.input) v = 1e-40;
  t.weight[2] = 1;
  found = run<BFloat16>(t, true, false, forward);
  check(distance(found, Numbers(found.size())) == 0, "avx512_bf16: subnormal features count as zero");
}

}  // namespace
}  // namespace torchdcn

int main() {
  using namespace torchdcn;
  const bool has = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512bf16");
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("CPU: %s\n", has ? "AVX-512, AVX512-BF16" : "lacks AVX512-BF16");
  if (has) {
    const auto avx512 = [](const auto& arguments) { avx512::forward(arguments); };
    const auto avx512_bf16 = [](const auto& arguments) { avx512_bf16::forward(arguments); };
    check_values(avx512_bf16);
    check_near<BFloat16>("avx512_bf16", 8e-3, avx512_bf16);
    check_near<float>("avx512, float32", 5e-6, avx512);
    check_near<double>("avx512, float64", 1e-13, avx512);
    check_near<BFloat16>("avx512, bfloat16", 8e-3, avx512);
    check_near<Half>("avx512, float16", 1e-3, avx512);
  }
  std::printf("RESULT: %s\n", has && all_passed ? "all passed" : "not all passed");
  if (getpid() == 1) {
    sync();
    sleep(1);
    reboot(RB_POWER_OFF);
  }
}
