"""mmdetection's results with fixed weights, stage by stage: every stage starts from its own results before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from torchdcn import Detector

if TYPE_CHECKING:
    from collections import OrderedDict
    from pathlib import Path

CONFIGS = {  # mmdetection's configuration to our name
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_mdconv_c3-c5",
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3-c5",
    "faster-rcnn_r50_fpn_mdpool_1x_coco": "faster_rcnn_r50_fpn_mdpool",
}
SHAPE = (500, 625)
PICTURES = {  # both were compared for all three; one each keeps the suite short
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "000000331352.jpg",
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "000000331352.jpg",
    "faster-rcnn_r50_fpn_mdpool_1x_coco": "000000041888.jpg",
}


class Run:
    """The detector on the padded picture, and what mmdetection got."""

    def __init__(self, config: str, vectors: Path, fill: Any, filled: Any) -> None:
        self.config = config
        self.model = filled(config, CONFIGS[config])
        self.theirs = np.load(vectors / "models" / f"{config}.pad512x640.npz")
        self.images = ImageList(torch.zeros(1, 3, 512, 640), [SHAPE])
        self.images.tensors[:, :, : SHAPE[0], : SHAPE[1]] = torch.from_numpy(fill.make_input(*SHAPE, 777))
        with torch.no_grad():
            self.body = self.model.backbone.body(self.images.tensors)
            self.maps: OrderedDict[str, Tensor] = self.model.backbone.fpn(self.body)

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.theirs[key])


@pytest.fixture(scope="module", params=CONFIGS)
def run(request: pytest.FixtureRequest, vectors: Path, fill: Any, filled: Any) -> Run:
    return Run(request.param, vectors, fill, filled)


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
    sums = pooled.double().sum(dim=(1, 2, 3))
    torch.testing.assert_close(sums, run.tensor("roi_feats_sum"), atol=0.05, rtol=1e-4)  # of 12544 features
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    close(scores.roll(-1, dims=1), run.tensor("cls_score"), 1e-4)  # theirs has the background last
    close(deltas, run.tensor("bbox_pred"), 1e-4)


def matched(theirs: dict[str, Any], boxes: Any, scores: Any, labels: Any, least: float) -> Tensor:
    """For each of their detections the index of ours: 99 in 100 overlap enough, with scores alike."""
    overlap = box_iou(torch.as_tensor(theirs["boxes"]), torch.as_tensor(boxes))
    overlap[torch.as_tensor(theirs["labels"])[:, None] != torch.as_tensor(labels)] = 0
    best, index = overlap.max(dim=1)
    good = best >= least
    assert good.sum() >= 99
    tolerance = 1e-3 if least > 0.98 else 1e-2
    close(torch.as_tensor(scores)[index][good], torch.as_tensor(theirs["scores"])[good], tolerance)
    return index


def masks_agree(ours: Tensor, bits: np.ndarray, least: float) -> None:
    theirs = torch.from_numpy(np.unpackbits(bits, axis=1)[:, : ours[0].numel()]).reshape(ours.shape).bool()
    union = (ours | theirs).sum(dim=(1, 2)).clamp(min=1)
    assert ((ours & theirs).sum(dim=(1, 2)) / union >= least).sum() >= 99


@torch.no_grad()
def test_detections_and_masks_at_the_original_size(run: Run):
    original = (250, 312)
    found, _ = run.model.roi_heads(run.maps, [run.tensor("proposals")], [SHAPE])
    [found] = run.model.transform.postprocess(found, [SHAPE], [original], mask_threshold=0.5)
    index = matched(run.theirs, found["boxes"], found["scores"], found["labels"], least=0.99)
    if "masks" in found:
        masks_agree(found["masks"][index, 0], run.theirs["mask_pasted_bits"], least=0.98)


def test_a_whole_picture_from_the_file_on(run: Run, vectors: Path):
    picture = PICTURES[run.config]
    found = Detector(run.model, score_threshold=0.0)(vectors.parent / "data" / "coco_sample" / "val" / picture)
    theirs = np.load(vectors / "models" / f"{run.config}.images.npz")
    theirs = {key.removeprefix(f"{picture}/"): theirs[key] for key in theirs if key.startswith(picture)}
    index = matched(theirs, found.boxes, found.scores, found.labels, least=0.97)
    if found.masks is not None:
        masks_agree(torch.from_numpy(found.masks)[index], theirs["mask_bits"], least=0.97)
