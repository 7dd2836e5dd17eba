from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchdcn.bench import parts
from torchdcn.bench.parts import PARTS, Counts, PartTimer
from torchdcn.bench.predictions import draw_targets, fix_predictions
from torchdcn.models import create_model

SIZE = (64, 96)
LAYERS = {
    "body": "backbone.body.layer3.0.conv2",
    "pyramid": "backbone.fpn.layer_blocks.1",
    "RPN": "rpn.head.conv",
    "box head": "roi_heads.box_head.fc6",
    "mask head": "roi_heads.mask_predictor",
}


def build(name: str = "mask_rcnn_r18_fpn_mdconv_c3-c5", **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = create_model(name, min_size=64, max_size=96, **overrides)
    fix_predictions(model, SIZE)
    return model


def step(model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    losses: dict[str, torch.Tensor] = model([torch.ones(3, *SIZE)], [draw_targets(SIZE)])
    return losses


def detect(model: Any) -> Any:
    with torch.inference_mode():
        return model([torch.ones(3, *SIZE)], original_sizes=[SIZE], mask_threshold=0.5)


class Clock:
    """Time that stands still but for what a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_second(self, *_: Any) -> None:
        self.now += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(parts, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def found_seconds(timer: PartTimer) -> dict[str, float]:
    return {part: seconds for part, seconds in timer.seconds.items() if seconds}


@pytest.mark.parametrize("part", LAYERS)
def test_what_a_layer_takes_in_detection_is_its_parts(part: str, clock: Clock) -> None:
    model = build().eval()
    timer = PartTimer(model)
    model.get_submodule(LAYERS[part]).register_forward_hook(clock.pass_second)
    timer.detect(lambda: detect(model))
    calls = 5 if part == "RPN" else 1  # once a level
    assert found_seconds(timer) == {part: calls}


@pytest.mark.parametrize("part", LAYERS)
def test_what_a_layer_takes_forward_and_backward_is_its_parts(part: str, clock: Clock) -> None:
    model = build()
    timer = PartTimer(model)
    layer = model.get_submodule(LAYERS[part])
    next(layer.parameters()).register_hook(clock.pass_second)  # its own backward pass
    timer.train(lambda: step(model))
    assert found_seconds(timer) == {part: 1}
    model.zero_grad()
    layer.register_forward_hook(clock.pass_second)
    timer.train(lambda: step(model))
    assert found_seconds(timer) == {part: 6 if part == "RPN" else 2}


def test_what_pasting_takes_is_its_own(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    model = build().eval()
    timer = PartTimer(model)
    paste = model.transform.postprocess
    monkeypatch.setattr(model.transform, "postprocess", lambda *arguments: clock.pass_second() or paste(*arguments))
    timer.detect(lambda: detect(model))
    assert found_seconds(timer) == {"pasting": 1}


@pytest.mark.parametrize("training", [False, True], ids=["detection", "training"])
def test_what_the_picture_takes_is_no_parts(training: bool, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    model = build().train(training)
    timer = PartTimer(model)
    normalise = model.transform.normalize
    monkeypatch.setattr(model.transform, "normalize", lambda image: clock.pass_second() or normalise(image))
    if training:
        timer.train(lambda: step(model))
    else:
        timer.detect(lambda: detect(model))
    assert clock.now == 1
    assert found_seconds(timer) == {}


def test_each_call_starts_from_zero(clock: Clock) -> None:
    model = build().eval()
    timer = PartTimer(model)
    model.backbone.body.layer4.register_forward_hook(clock.pass_second)
    for _ in range(2):
        timer.detect(lambda: detect(model))
        assert timer.seconds == dict.fromkeys(PARTS, 0.0) | {"body": 1}


def test_what_goes_through_is_counted() -> None:
    model = build()
    timer = PartTimer(model)
    timer.train(lambda: step(model))
    assert timer.counts == Counts(proposals=1000, boxes=512, masks=128, detections=0)
    model.eval()
    timer.detect(lambda: detect(model))
    assert timer.counts == Counts(proposals=1000, boxes=1000, masks=100, detections=100)
    faster = build("faster_rcnn_r18_fpn", rpn_post_nms_top_n_test=50, box_detections_per_img=20).eval()
    timer = PartTimer(faster)
    timer.detect(lambda: detect(faster))
    assert timer.counts == Counts(proposals=50, boxes=50, masks=0, detections=20)


@pytest.mark.parametrize("name", ["mask_rcnn_r18_fpn_mdconv_c3-c5", "faster_rcnn_r50_dcnv2"])
def test_timing_changes_neither_losses_nor_gradients(name: str) -> None:
    small: dict[str, Any] = {"trainable_backbone_layers": 3, "box_head_channels": 16}
    small |= {"pool_channels": 16} if "dcnv2" in name else {}
    model = build(name, **small)
    losses = step(model)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    seen: list[dict[str, torch.Tensor]] = []
    PartTimer(model).train(lambda: seen.append(step(model)) or seen[0])
    torch.testing.assert_close(seen[0], losses, rtol=0, atol=0)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[key], msg=key)
        else:
            assert parameter.grad is None
