from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import box_iou

from torchdcn.bench.predictions import draw_targets, fix_predictions
from torchdcn.models import create_model

SIZE = (64, 96)
NAMES = ["mask_rcnn_r18_fpn", "mask_rcnn_r18_fpn_mdconv_c3-c5_mdpool"]


def build(name: str, seed: int, size: tuple[int, int] = SIZE, **overrides: Any) -> Any:
    torch.manual_seed(seed)
    model = create_model(name, min_size=min(size), max_size=max(size), **overrides)
    fix_predictions(model, size)
    return model


def boxes_seen(model: Any, pool: str) -> list[torch.Tensor]:
    """The boxes that reach a head from here on."""
    seen: list[torch.Tensor] = []
    getattr(model.roi_heads, pool).register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1]))
    return seen


@pytest.mark.parametrize("size", [SIZE, (160, 64)], ids=str)
def test_networks_of_other_layers_and_weights_find_the_same_boxes_and_paste_masks_into_them(size) -> None:
    found, proposals = [], []
    for seed, name in enumerate(NAMES):
        model = build(name, seed, size).eval()
        proposals.append(boxes_seen(model, "box_roi_pool"))
        with torch.inference_mode():
            found += model([torch.rand(3, *size)])
    first, second = found
    assert [len(one) for [one] in proposals] == [1000, 1000]
    assert torch.equal(proposals[0][0], proposals[1][0])
    for name in ("boxes", "labels", "scores"):
        assert torch.equal(first[name], second[name])
    assert first["masks"].shape == second["masks"].shape == (100, 1, *size)


def test_the_settings_say_how_many_there_are() -> None:
    model = build(NAMES[0], 0, rpn_post_nms_top_n_test=30, box_detections_per_img=7).eval()
    proposals = boxes_seen(model, "box_roi_pool")
    with torch.inference_mode():
        [found] = model([torch.rand(3, *SIZE)])
    assert (len(proposals[0]), len(found["boxes"])) == (30, 7)


def test_detections_are_objects_of_many_sizes_within_the_picture() -> None:
    size = (800, 1344)
    model = build(NAMES[0], 0)
    fix_predictions(model, size)
    with torch.inference_mode():
        maps = {str(i): torch.zeros(1, 128, 8, 8) for i in range(5)}
        boxes = model.eval().roi_heads(maps, model.rpn(image_list(size), maps)[0], [size])[0][0]["boxes"]
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    assert len(boxes) == 100
    assert [int(((low <= sides) & (sides < 2 * low)).sum() > 5) for low in (16, 32, 64, 128, 256)] == [1] * 5
    assert bool(((boxes >= 0) & (boxes <= torch.tensor([1344, 800, 1344, 800]))).all())


def image_list(size: tuple[int, int]) -> Any:
    from torchvision.models.detection.image_list import ImageList

    return ImageList(torch.zeros(1, 3, *size), [size])


def test_networks_train_on_the_same_samples_a_quarter_of_which_are_objects() -> None:
    samples, masks = [], []
    for seed, name in enumerate(NAMES):
        model = build(name, seed)
        samples.append(boxes_seen(model, "box_roi_pool"))
        masks.append(boxes_seen(model, "mask_roi_pool"))
        torch.manual_seed(0)
        model([torch.rand(3, *SIZE)], [draw_targets(SIZE)])
    assert torch.equal(samples[0][0], samples[1][0])
    assert torch.equal(masks[0][0], masks[1][0])
    assert (len(samples[0][0]), len(masks[0][0])) == (512, 128)
    overlaps = box_iou(masks[0][0], draw_targets(SIZE)["boxes"]).max(dim=1).values
    assert float(overlaps.min()) >= 0.5


def test_every_layer_that_predicts_still_gets_a_gradient() -> None:
    model = build("mask_rcnn_r18_fpn_mdconv_c3-c5", 0)
    sum(model([torch.rand(3, *SIZE)], [draw_targets(SIZE)]).values()).backward()
    for part in (model.rpn.head, model.roi_heads, model.backbone.fpn, model.backbone.body.layer4):
        gradients = [parameter.grad for parameter in part.parameters()]
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients)


def test_two_pictures_of_a_batch_get_the_same() -> None:
    model = build(NAMES[1], 0).eval()
    with torch.inference_mode():
        first, second = model([torch.rand(3, *SIZE), torch.rand(3, *SIZE)])
    assert torch.equal(first["boxes"], second["boxes"])
