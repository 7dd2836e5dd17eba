"""mmdetection's results with fixed weights, stage by stage: every stage starts from its own results before it."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from torchdcn.models import create_model

if TYPE_CHECKING:
    from collections import OrderedDict
    from pathlib import Path

CONFIGS = {  # mmdetection's configuration to our name
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_mdconv_c3-c5",
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3-c5",
}
SHAPE = (500, 625)


def filled(config: str, vectors: Path, folder: Path) -> tuple[Any, Any]:
    spec = importlib.util.spec_from_file_location("fill", vectors / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    keys = json.loads((vectors / "keys" / f"{config}.keys.json").read_text())
    state = {key: torch.from_numpy(fill.fill_array(key, shape)) for key, shape, _ in keys}
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, folder / "mmdet.pth")
    model = create_model(CONFIGS[config], weights=folder / "mmdet.pth")
    return model.eval(), torch.from_numpy(fill.make_input(*SHAPE, 777))


class Run:
    """The detector on the padded picture, and what mmdetection got."""

    def __init__(self, config: str, vectors: Path, folder: Path) -> None:
        self.model, picture = filled(config, vectors, folder)
        self.theirs = np.load(vectors / "models" / f"{config}.pad512x640.npz")
        self.images = ImageList(torch.zeros(1, 3, 512, 640), [SHAPE])
        self.images.tensors[:, :, : SHAPE[0], : SHAPE[1]] = picture
        with torch.no_grad():
            self.body = self.model.backbone.body(self.images.tensors)
            self.maps: OrderedDict[str, Tensor] = self.model.backbone.fpn(self.body)

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.theirs[key])


@pytest.fixture(scope="module", params=CONFIGS)
def run(request: pytest.FixtureRequest, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(request.param, vectors, tmp_path_factory.mktemp("mmdet"))


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_features(run: Run):
    close(run.body["3"], run.tensor("C5"), 5e-5)
    for stage, features in enumerate(run.body.values(), start=2):
        close(features.mean(dim=(2, 3)), run.tensor(f"C{stage}_mean_hw"), 5e-5)
    for level, features in enumerate(run.maps.values(), start=2):
        close(features.mean(dim=(2, 3)), run.tensor(f"P{level}_mean_hw"), 5e-5)
        if level >= 4:
            close(features, run.tensor(f"P{level}"), 5e-5)


@torch.no_grad()
def test_proposals(run: Run):
    [boxes], _ = run.model.rpn(run.images, run.maps)
    assert boxes.shape == (1000, 4)
    best = box_iou(run.tensor("proposals"), boxes).max(dim=1).values
    assert (best > 0.99).sum() >= 998  # a score within rounding of the thousandth may take another's place


@torch.no_grad()
def test_regions(run: Run):
    heads, boxes = run.model.roi_heads, run.tensor("proposals")
    assert torch.equal(heads.box_roi_pool.levels(boxes), run.tensor("roi_levels"))
    pooled = heads.box_roi_pool(run.maps, [boxes], [SHAPE])
    close(pooled[run.tensor("roi_feats_hi_index")], run.tensor("roi_feats_hi"), 5e-5)
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    close(scores.roll(-1, dims=1), run.tensor("cls_score"), 1e-4)  # theirs has the background last
    close(deltas, run.tensor("bbox_pred"), 1e-4)


@torch.no_grad()
def test_detections_and_masks_at_the_original_size(run: Run):
    original = (250, 312)
    found, _ = run.model.roi_heads(run.maps, [run.tensor("proposals")], [SHAPE])
    [found] = run.model.transform.postprocess(found, [SHAPE], [original], mask_threshold=0.5)
    overlap = box_iou(run.tensor("boxes"), found["boxes"])
    overlap[run.tensor("labels")[:, None] != found["labels"]] = 0
    best, index = overlap.max(dim=1)
    assert (best >= 0.99).sum() >= 99
    close(found["scores"][index], run.tensor("scores"), 1e-3)
    if "masks" not in found:
        return
    bits = np.unpackbits(run.theirs["mask_pasted_bits"], axis=1)[:, : original[0] * original[1]]
    theirs = torch.from_numpy(bits).reshape(-1, *original).bool()
    ours = found["masks"][index, 0]
    union = (ours | theirs).sum(dim=(1, 2)).clamp(min=1)
    assert ((ours & theirs).sum(dim=(1, 2)) / union >= 0.98).sum() >= 99
