from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from torchdcn.models import create_model
from torchdcn.nn import DeformConv2dPack

if TYPE_CHECKING:
    from torchdcn.models.rcnn import RCNN

MASK = "mask_rcnn_r18_fpn_mdconv_c3-c5"
FASTER = "faster_rcnn_r18_fpn_mdconv_c3-c5"
LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


def small(name: str = MASK, **overrides: Any) -> RCNN:
    torch.manual_seed(0)
    settings = {"num_classes": 3, "min_size": 64, "max_size": 128} | overrides
    return create_model(name, **settings)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(3, *size) for size in sizes]


@pytest.fixture(scope="module")
def detector() -> RCNN:
    return small(box_score_thresh=0.0, box_detections_per_img=20).eval()


@torch.no_grad()
def detect(model: nn.Module, *args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
    return model(*args, **kwargs)


@pytest.mark.parametrize(("name", "losses"), [(FASTER, LOSSES), (MASK, LOSSES | {"loss_mask"})])
def test_training_gives_losses_and_every_parameter_a_finite_gradient(name: str, losses: set[str], target: Any):
    model = small(name)
    assert model.training
    targets = [target((8, 8, 40, 40), (30, 20, 70, 60), labels=[0, 2]), target(size=(70, 64))]
    found = model(images((64, 80), (70, 64)), targets)
    assert set(found) == losses
    assert all(loss.dim() == 0 and loss.isfinite() for loss in found.values())
    sum(found.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    moving = [module for module in model.modules() if isinstance(module, DeformConv2dPack)]
    assert all(module.conv_offset.weight.grad.abs().max() > 0 for module in moving)


def test_a_few_steps_lower_the_loss(target: Any):
    model = small(FASTER, rpn_batch_size_per_image=64, box_batch_size_per_image=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    batch, targets = images((64, 80)), [target((8, 8, 40, 40), (44, 20, 76, 60), labels=[0, 2])]
    history = []
    for _ in range(6):
        loss = sum(model(batch, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize("name", [FASTER, MASK])
def test_images_without_objects_train(name: str, target: Any):
    model = small(name)
    losses = model(images((64, 80)), [target()])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    bare = {"boxes": torch.tensor([]), "labels": torch.tensor([]), "masks": torch.tensor([])}
    assert all(loss.isfinite() for loss in model(images((70, 100)), [bare]).values())


def test_detections_come_in_pixels_of_each_image_best_first(detector: RCNN):
    sizes = [(64, 80), (100, 50)]
    for (height, width), found in zip(sizes, detect(detector, images(*sizes)), strict=True):
        assert set(found) == {"boxes", "labels", "scores", "masks"}
        count = len(found["boxes"])
        assert 0 < count <= 20
        assert found["masks"].shape == (count, 1, height, width)
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 2].max() <= width + 1e-3
        assert found["boxes"][:, 3].max() <= height + 1e-3
        assert set(found["labels"].tolist()) <= {0, 1, 2}
        assert (found["scores"].diff() <= 0).all()


def test_detecting_works_where_gradients_are_recorded(detector: RCNN):
    [image] = images((64, 80))
    [found] = detector([image.requires_grad_()])
    found["scores"].sum().backward()
    assert image.grad.abs().sum() > 0
    assert not found["masks"].requires_grad


def test_no_detections_keep_shapes_and_dtypes():
    [found] = detect(small(box_score_thresh=1.0).eval(), images((64, 80)))
    assert {key: (tuple(value.shape), value.dtype) for key, value in found.items()} == {
        "boxes": ((0, 4), torch.float32),
        "labels": ((0,), torch.int64),
        "scores": ((0,), torch.float32),
        "masks": ((0, 1, 64, 80), torch.float32),
    }


def test_an_image_alone_and_in_a_batch_has_the_same_detections(detector: RCNN):
    # All three need the same padding: what is padded counts in GroupNorm's statistics.
    batch = images((64, 80), (60, 72), (64, 96))
    for image, together in zip(batch, detect(detector, batch, original_sizes=[(64, 80)] * 3), strict=True):
        [alone] = detect(detector, [image], original_sizes=[(64, 80)])
        torch.testing.assert_close(alone["scores"], together["scores"], atol=1e-3, rtol=1e-3)


def test_an_image_that_fits_is_not_resampled_and_padding_is_black_after_normalisation():
    model = small().eval()
    [image] = images((64, 80))
    batch, _ = model.transform([image])
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.settings.image_mean, model.settings.image_std))
    torch.testing.assert_close(batch.tensors[0, :, :, :80], (image - mean) / std)
    assert batch.tensors.shape == (1, 3, 64, 96)
    assert (batch.tensors[..., 80:] == 0).all()


@pytest.mark.parametrize(
    ("size", "resized"),
    [((480, 640), (800, 1067)), ((500, 351), (1140, 800)), ((427, 640), (800, 1199)), ((300, 900), (444, 1333))],
)
def test_sizes_are_rounded_as_mmdetection_does_and_fit_afterwards(size: Any, resized: Any):
    model = small("faster_rcnn_r18_fpn", min_size=800, max_size=1333)
    assert model.transform.size_for(*size) == resized
    assert model.transform.size_for(*resized) == resized


def test_images_that_the_caller_resized_give_detections_at_the_original_size(detector: RCNN):
    [image] = images((40, 64))  # min_size is 64, and yet it is left alone
    [found] = detect(detector, [image], original_sizes=[(80, 128)], mask_threshold=0.5)
    assert found["masks"].shape[1:] == (1, 80, 128)
    assert found["masks"].dtype == torch.bool
    [half] = detect(detector, [image], original_sizes=[(40, 64)])
    torch.testing.assert_close(found["boxes"], half["boxes"] * 2)


def test_resizing_takes_the_targets_along(target: Any):
    transform = small().transform
    image, resized = transform.resize(torch.rand(3, 32, 48), target((4, 8, 20, 24), size=(32, 48)))
    assert image.shape == (3, 64, 96)
    assert resized["boxes"].tolist() == [[8, 16, 40, 48]]
    assert resized["masks"].shape == (1, 64, 96)
    assert resized["masks"].sum() == 32 * 32


def test_of_several_sizes_training_draws_and_testing_takes_the_last():
    model = small(min_size=(32, 48, 64))
    sizes = {tuple(model.transform([torch.rand(3, 64, 64)])[0].image_sizes[0]) for _ in range(40)}
    assert sizes == {(32, 32), (48, 48), (64, 64)}
    assert model.eval().transform([torch.rand(3, 32, 32)])[0].image_sizes == [(64, 64)]


def test_crowds_are_left_out_of_training(target: Any):
    model = small(FASTER)
    crowd = target((8, 8, 40, 40), labels=[1]) | {"iscrowd": torch.tensor([1])}
    assert model(images((64, 80)), [crowd])["loss_rpn_box_reg"] == 0


def test_takes_torchvisions_tv_tensors(target: Any):
    goal = target((8, 8, 40, 40), labels=[1])
    goal["boxes"] = tv_tensors.BoundingBoxes(goal["boxes"], format="XYXY", canvas_size=(64, 80))
    goal["masks"] = tv_tensors.Mask(goal["masks"])
    losses = small()([tv_tensors.Image(images((64, 80))[0])], [goal])
    assert all(type(loss) is Tensor and loss.isfinite() for loss in losses.values())


def test_channels_last_float64_and_bfloat16_work(detector: RCNN, target: Any):
    batch = images((64, 80))
    expected = detect(detector, batch)[0]
    last = small(box_score_thresh=0.0, box_detections_per_img=20).eval().to(memory_format=torch.channels_last)
    torch.testing.assert_close(detect(last, batch)[0]["scores"], expected["scores"], atol=1e-4, rtol=1e-4)
    double = small(box_score_thresh=0.0, box_detections_per_img=20).eval().double()
    found = detect(double, [batch[0].double()])[0]
    assert found["boxes"].dtype == torch.float64
    torch.testing.assert_close(found["scores"].float(), expected["scores"], atol=1e-4, rtol=1e-4)
    low = small(box_score_thresh=0.0, box_detections_per_img=20).eval().bfloat16()
    found = detect(low, [batch[0].bfloat16()])[0]
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert detect(detector, batch)[0]["boxes"].dtype == torch.float32
        losses = last.train()(batch, [target((8, 8, 40, 40))])
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[8.0, 8, 8, 40]])}, r"targets\[0\]: boxes: expected x2 > x1"),
        ({"boxes": torch.tensor([[8.0, 8, 40]])}, r"targets\[0\]: boxes: expected shape \[1, 4\]"),
        ({"labels": torch.tensor([3])}, r"targets\[0\]: labels: expected ints in 0\.\.2, got \[3\]"),
        ({"labels": torch.tensor([-1])}, r"targets\[0\]: labels: expected ints"),
        ({"masks": torch.zeros(1, 10, 10)}, r"targets\[0\]: masks: expected shape \[1, 64, 80\]"),
        ({"masks": None}, r"targets\[0\]: masks missing"),
        (
            {"boxes": torch.tensor([[0, 0, float("inf"), 3]])},
            r"targets\[0\]: boxes: .* all finite, got \[0.0, 0.0, inf",
        ),
        ({"boxes": torch.tensor([[-float("inf"), 0, 3, 3]])}, r"targets\[0\]: boxes: .* all finite"),
        ({"boxes": torch.tensor([[float("nan"), 0, 3, 3]])}, r"targets\[0\]: boxes: .* all finite"),
        ({"boxes": "left"}, r"targets\[0\]: boxes: expected a tensor, got a str"),
        ({"labels": torch.tensor(1)}, r"targets\[0\]: labels: expected shape \[n\], got \[\]"),
        ({"labels": torch.tensor([[1]])}, r"targets\[0\]: labels: expected shape \[n\], got \[1, 1\]"),
        ({"labels": torch.tensor([True])}, r"targets\[0\]: labels: expected ints"),
        ({"iscrowd": torch.tensor([0, 1])}, r"targets\[0\]: iscrowd: expected shape \[1\], got \[2\]"),
    ],
)
def test_a_bad_target_is_named(change: dict[str, Any], message: str, target: Any):
    goal = {key: value for key, value in (target((8, 8, 40, 40)) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        small()(images((64, 80)), [goal])


def test_bad_images_and_missing_targets_are_named(detector: RCNN):
    with pytest.raises(ValueError, match=r"images\[1\]: expected a tensor \[3, H, W\], got \[1, 8, 8\]"):
        detector([torch.rand(3, 8, 8), torch.rand(1, 8, 8)])
    with pytest.raises(TypeError, match=r"images\[0\]: expected floats in 0\.\.1, got torch\.uint8"):
        detector([torch.zeros(3, 8, 8, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="original_sizes: expected one for each of 1 images, got 2"):
        detector([torch.rand(3, 8, 8)], original_sizes=[(8, 8)] * 2)
    with pytest.raises(ValueError, match="images: expected at least one"):
        detector([])
    with pytest.raises(ValueError, match="targets: training needs one for each of 1 images, got none"):
        small()(images((64, 80)))
    with pytest.raises(ValueError, match="targets: training needs one for each of 1 images, got dict"):
        small()(images((64, 80)), {"boxes": []})
    with pytest.raises(TypeError, match=r"targets\[0\]: expected a dict with boxes, labels, masks, got int"):
        small()(images((64, 80)), [3])


def test_an_image_of_another_dtype_than_the_model_is_named(detector: RCNN):
    with pytest.raises(
        TypeError, match=r"images\[1\]: expected torch\.float32, which the model has, got torch\.float64"
    ):
        detector([torch.rand(3, 8, 8), torch.rand(3, 8, 8).double()])


@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (1.5, 0), (1, -0.5), (float("nan"), 0), (float("inf"), 0)])
def test_training_refuses_pictures_whose_values_are_not_in_0_to_1_as_the_detector_does(
    scale: float, shift: float, target: Any
):
    good, bad = images((64, 80), (64, 80))
    with pytest.raises(ValueError, match=r"images\[1\]: expected values in 0\.\.1, got .*; divide bytes by 255"):
        small(FASTER)([good, bad * scale + shift], [target((8, 8, 40, 40)), target()])


def test_tiny_images_work(detector: RCNN):
    assert detect(detector, [torch.rand(3, 1, 1)])[0]["masks"].shape[1:] == (1, 1, 1)
