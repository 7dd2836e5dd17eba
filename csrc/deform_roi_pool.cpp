// Deformable RoI pooling as torch sees it. Python has checked shapes, dtypes, devices and numbers, and allocated the
// outputs (src/torchdcn/ops/deform_roi_pool/); what is left to check is which image a box is of.
#include "deform_roi_pool.h"
#include "tensors.h"

#include <sstream>
#include <stdexcept>

namespace torchdcn {
namespace {

// A contiguous tensor of positions or factors in the dtype that sums have: the tensor itself if it has that.
template <class A>
class Factors {
 public:
  explicit Factors(const std::optional<Tensor>& t) {
    if (!t) return;
    const auto copy = [&](const auto* from) {
      own_.resize(t->numel());
      for (int64_t i = 0; i < t->numel(); ++i) own_.data()[i] = A(from[i]);
      data_ = own_.data();
    };
    if (t->scalar_type() == ScalarType::BFloat16)
      copy(static_cast<const BFloat16*>(t->data_ptr()));
    else if (t->scalar_type() == ScalarType::Half)
      copy(static_cast<const Half*>(t->data_ptr()));
    else
      data_ = static_cast<const A*>(t->data_ptr());
  }
  const A* data() const { return data_; }

 private:
  Buffer<A> own_;
  const A* data_ = nullptr;
};

// The other way: where a kernel writes such a gradient.
template <class A>
class FactorsOut {
 public:
  explicit FactorsOut(const std::optional<Tensor>& t) : tensor_(t) {
    if (!t) return;
    if (is_16_bit()) own_.resize(t->numel());
    data_ = is_16_bit() ? own_.data() : static_cast<A*>(t->data_ptr());
  }
  A* data() const { return data_; }
  void write() const {
    if (!tensor_ || !is_16_bit()) return;
    const auto copy = [&](auto* to) {
      for (int64_t i = 0; i < tensor_->numel(); ++i) to[i] = std::remove_pointer_t<decltype(to)>(float(data_[i]));
    };
    if (tensor_->scalar_type() == ScalarType::Half) return copy(static_cast<Half*>(tensor_->data_ptr()));
    copy(static_cast<BFloat16*>(tensor_->data_ptr()));
  }

 private:
  bool is_16_bit() const {
    return tensor_->scalar_type() == ScalarType::BFloat16 || tensor_->scalar_type() == ScalarType::Half;
  }
  const std::optional<Tensor>& tensor_;
  Buffer<A> own_;
  A* data_ = nullptr;
};

constexpr double kLargestBin = 1 << 30;  // in pixels: of a larger one no sample is taken, and its average is 0

// How many samples a bin of some size has along an axis. One where the size is NaN: it is at NaN.
template <class A>
int64_t samples_of(A bin, int64_t sampling_ratio) {
  if (sampling_ratio > 0) return sampling_ratio;
  if (bin != bin) return 1;
  return bin > 0 && bin <= A(kLargestBin) ? int64_t(std::ceil(bin)) : 0;
}

// `row`: index of the image, x1, y1, x2, y2. Compiled for any CPU, so that no product is fused with a sum: the number of
// samples must be torchvision's, to the last bit.
template <class A>
RoiBox<A> box_on_map(const A* row, const RoiProblem<A>& p, A spatial_scale, int64_t sampling_ratio) {
  if (!(row[0] >= 0 && row[0] < A(p.N))) {  // NaN too
    std::ostringstream message;
    message << "boxes: expected indices of images from 0 to " << p.N - 1 << ", got " << row[0];
    throw std::runtime_error(message.str());
  }
  const auto on_map = [&](int i) { return row[i] * spatial_scale - A(0.5); };
  RoiBox<A> box{int64_t(row[0]), on_map(2), on_map(1), 0, 0, 0, 0};
  const auto side = [&](A length, int64_t bins, A& size, int64_t& samples) {
    if (std::isinf(length)) return;
    size = length;
    samples = samples_of(length / A(bins), sampling_ratio);
  };
  side(on_map(4) - box.top, p.ph, box.height, box.down);
  side(on_map(3) - box.left, p.pw, box.width, box.across);
  return box;
}

template <class A>
RoiProblem<A> problem(const Tensor& input, const Tensor& boxes, const Numbers& output_size, double spatial_scale,
                      int64_t sampling_ratio, double gamma, const Factors<A>& offset, const Factors<A>& mask) {
  const auto size = input.sizes();
  RoiProblem<A> p{size[0],  size[1], size[2], size[3], boxes.sizes()[0], output_size[0], output_size[1],
                  A(gamma), {},      {},      offset.data(), mask.data()};
  const Factors<A> rows(boxes);
  p.of_image.resize(p.N);
  for (int64_t k = 0; k < p.K; ++k) {
    p.boxes.push_back(box_on_map(rows.data() + 5 * k, p, A(spatial_scale), sampling_ratio));
    p.of_image[p.boxes[k].image].push_back(k);
  }
  return p;
}

void deform_roi_pool(Tensor input, Tensor boxes, std::optional<Tensor> offset, std::optional<Tensor> mask,
                     Numbers output_size, double spatial_scale, int64_t sampling_ratio, double gamma, Tensor output) {
  for_dtype(input, [&](auto like) {
    using T = decltype(like);
    const Factors<Sum<T>> offsets(offset), factors(mask);
    const RoiForwardArguments<T> args{
        problem(input, boxes, output_size, spatial_scale, sampling_ratio, gamma, offsets, factors),
        view<const T>(input), view<T>(output)};
    if (args.problem.K == 0) return;
    TORCHDCN_DISPATCH(roi_forward(args));
  });
}

template <class T>
void run_backward(const RoiBackwardArguments<T>& args) {
  TORCHDCN_DISPATCH(roi_backward(args));
}

void deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor boxes, std::optional<Tensor> offset,
                              std::optional<Tensor> mask, Numbers output_size, double spatial_scale,
                              int64_t sampling_ratio, double gamma, std::optional<Tensor> grad_input,
                              std::optional<Tensor> grad_offset, std::optional<Tensor> grad_mask) {
  for_dtype(input, [&](auto like) {
    using T = decltype(like);
    const Factors<Sum<T>> offsets(offset), factors(mask);
    const FactorsOut<Sum<T>> to_offset(grad_offset), to_mask(grad_mask);
    const RoiBackwardArguments<T> args{
        problem(input, boxes, output_size, spatial_scale, sampling_ratio, gamma, offsets, factors),
        view<const T>(grad_output), view<const T>(input), view<T>(grad_input), to_offset.data(), to_mask.data()};
    if (args.problem.N == 0) return;
    run_backward(args);
    to_offset.write();
    to_mask.write();
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchdcn, CPU, m) {
  m.impl("_deform_roi_pool_cpp", boxed<TORCH_BOX(&deform_roi_pool)>);
  m.impl("_deform_roi_pool_backward_cpp", boxed<TORCH_BOX(&deform_roi_pool_backward)>);
}

}  // namespace torchdcn
