"""mmdetection's own numbers, compared wherever the tests run; test_parity.py compares more where they are all there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from torchdcn.models import create_model
from torchdcn.weights.mmdet import convert_mmdet, revert_mmdet

from .mmdet_numbers import FILE, picture, tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE = (500, 625)
MODELS = {MDCONV := "faster_rcnn_r50_fpn_mdconv_c3-c5", MDPOOL := "faster_rcnn_r50_fpn_mdpool"}


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    with np.load(FILE) as numbers:
        yield {key: torch.from_numpy(numbers[key]) for key in numbers}


def filled(name: str, *without: str) -> Any:
    """A model whose weights follow the rule; parts that a test does without have none at all."""
    with torch.device("meta"):
        model = create_model(name, norm="bn_eval").eval()
    names = [key for key in revert_mmdet(model.state_dict()) if not key.startswith(without)]
    shapes = {key: value.shape for key, value in revert_mmdet(model.state_dict()).items()}
    state = convert_mmdet({key: torch.from_numpy(tensor(key, tuple(shapes[key]))) for key in names})
    model.load_state_dict(state, strict=False, assign=True)
    return model


def images() -> ImageList:
    batch = ImageList(torch.zeros(1, 3, 512, 640), [SHAPE])
    batch.tensors[:, :, : SHAPE[0], : SHAPE[1]] = torch.from_numpy(picture())
    return batch


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_mdconv_from_the_picture_to_detections(theirs: dict[str, Tensor]):
    model, batch = filled(MDCONV), images()
    body = model.backbone.body(batch.tensors)
    maps = model.backbone.fpn(body)
    close(body["3"][:, ::64], theirs["mdconv/C5"], 5e-5)
    close(maps["2"][:, ::32], theirs["mdconv/P4"], 5e-5)
    close(maps["0"].mean(dim=(2, 3)), theirs["mdconv/P2"], 5e-5)

    [proposals], _ = model.rpn(batch, maps)
    expected = theirs["mdconv/proposals"]
    assert (box_iou(expected, proposals).max(dim=1).values > 0.99).sum() >= 998
    heads = model.roi_heads
    scores, deltas = heads.box_predictor(heads.box_features(maps, [expected], [SHAPE]))
    close(scores.roll(-1, dims=1)[::10], theirs["mdconv/cls_score"], 1e-4)  # theirs has the background last
    close(deltas[::40], theirs["mdconv/bbox_pred"], 1e-4)

    [found], _ = heads(maps, [proposals], [SHAPE])
    [found] = model.transform.postprocess([found], [SHAPE], [(250, 312)])
    overlap = box_iou(theirs["mdconv/boxes"], found["boxes"])
    overlap[theirs["mdconv/labels"][:, None] != found["labels"]] = 0
    best, index = overlap.max(dim=1)
    assert (best >= 0.99).sum() >= 99
    good = best >= 0.99
    close(found["scores"][index][good], theirs["mdconv/scores"][good], 1e-3)


@torch.no_grad()
def test_mdpool_from_the_picture_to_scores(theirs: dict[str, Tensor]):
    # Of the packs that the four levels have, only the second's is made: it has 27 million weights.
    others = [f"roi_head.bbox_roi_extractor.roi_layers.{i}" for i in (0, 2, 3)]
    model = filled(MDPOOL, "rpn_head", *others)
    maps = model.backbone(images().tensors)
    close(maps["1"].mean(dim=(2, 3)), theirs["mdpool/P3"], 5e-5)

    heads, boxes = model.roi_heads, theirs["mdpool/proposals"]
    assert set(heads.box_roi_pool.levels(boxes).tolist()) == {1}
    pooled = heads.box_roi_pool.layers[1](maps["1"], torch.nn.functional.pad(boxes, (1, 0)))
    torch.testing.assert_close(pooled.double().sum(dim=(1, 2, 3)), theirs["mdpool/roi_feats_sum"], atol=0.05, rtol=1e-4)
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    close(scores.roll(-1, dims=1), theirs["mdpool/cls_score"], 1e-4)
    close(deltas[::3], theirs["mdpool/bbox_pred"], 1e-4)


def test_the_rule_is_the_one_of_the_recorded_results(fill: Any):
    for key, shape in (
        ("backbone.layer3.1.conv2.conv_offset.weight", (27, 256, 3, 3)),
        ("backbone.layer3.1.bn3.weight", (1024,)),
        ("backbone.layer1.0.downsample.1.bias", (256,)),
        ("roi_head.bbox_head.fc_cls.bias", (81,)),
        ("rpn_head.rpn_conv.weight", (256, 256, 3, 3)),
    ):
        np.testing.assert_allclose(tensor(key, shape), fill.fill_array(key, shape), rtol=1e-6)
    np.testing.assert_allclose(picture(), fill.make_input(*SHAPE, 777), atol=1e-6)
