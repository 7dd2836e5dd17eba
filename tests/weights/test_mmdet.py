from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from torchdcn.models.create import create_model as create
from torchdcn.weights.mmdet import convert_mmdet, is_mmdet

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
