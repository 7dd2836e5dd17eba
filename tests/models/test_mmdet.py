from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch

from torchdcn.models.create import create_model as create
from torchdcn.models.mmdet import convert_mmdet, is_mmdet

if TYPE_CHECKING:
    from pathlib import Path


def test_unknown_names_of_a_checkpoint_are_listed():
    with pytest.raises(
        ValueError, match=r"^state_dict: names that no model of ours has: neck\.x, roi_head\.a\.weight$"
    ):
        convert_mmdet({"neck.x": torch.zeros(1), "roi_head.a.weight": torch.zeros(1)})


def test_files_of_mmdetection_1_are_told_from_others(tmp_path: Path):
    old = {"bbox_head.fc_cls.bias": torch.zeros(1), "neck.fpn_convs.0.conv.bias": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"bbox_head\.fc_cls\.bias; a file of mmdetection 1 goes through its tools/model"
    ):
        convert_mmdet(old)
    torch.save(old, tmp_path / "old.pth")
    with pytest.raises(ValueError, match=r"^weights: .*old\.pth: names that no model of ours has: bbox_head\.fc_cls"):
        create("faster_rcnn_r18_fpn", weights=tmp_path / "old.pth")


def test_old_offset_names_and_the_place_of_the_background_are_converted():
    old = {"backbone.layer2.0.conv2_offset.weight": torch.zeros(1), "roi_head.bbox_head.fc_cls.bias": torch.arange(4)}
    new = convert_mmdet(old)
    assert set(new) == {
        "backbone.body.layer2.0.conv2.conv_offset.weight",
        "roi_heads.box_predictor.cls_score.bias",
    }
    assert new["roi_heads.box_predictor.cls_score.bias"].tolist() == [3, 0, 1, 2]
    assert is_mmdet(old)


CONFIGS = {
    "faster-rcnn_r50_fpn_1x_coco": "faster_rcnn_r50_fpn",
    "faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_dconv_c3-c5",
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3-c5",
    "faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
    "faster-rcnn_r50_fpn_dpool_1x_coco": "faster_rcnn_r50_fpn_dpool",
    "faster-rcnn_r50_fpn_mdpool_1x_coco": "faster_rcnn_r50_fpn_mdpool",
    "faster-rcnn_r101-dconv-c3-c5_fpn_1x_coco": "faster_rcnn_r101_fpn_dconv_c3-c5",
    "faster-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco": "faster_rcnn_x101-32x4d_fpn_dconv_c3-c5",
    "mask-rcnn_r50_fpn_1x_coco": "mask_rcnn_r50_fpn",
    "mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_dconv_c3-c5",
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_mdconv_c3-c5",
    "mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco": "mask_rcnn_r101_fpn_dconv_c3-c5",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_names_shapes_and_parameters_are_those_of_mmdetection(config: str, vectors: Path):
    keys = json.loads((vectors / "keys" / f"{config}.keys.json").read_text())
    theirs = convert_mmdet({key: torch.empty(shape, device="meta") for key, shape, _ in keys})
    with torch.device("meta"):
        model = create(CONFIGS[config])
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in model.state_dict().items()}
    fixed = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(math.prod(shape) for key, shape, _ in keys if not key.endswith(fixed))
    assert sum(p.numel() for p in model.parameters()) == count
