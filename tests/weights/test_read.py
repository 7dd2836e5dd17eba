from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from torchdcn.weights.read import read_state_dict, read_weights
from torchdcn.weights.torchdcn_file import read_info

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_of_other_software_has_no_info(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert read_info(tmp_path / "other.safetensors") is None
    assert read_state_dict(tmp_path / "other.safetensors")["a"].shape == (2,)


def test_class_names_come_from_checkpoints_of_mmdetection_in_each_of_its_versions(tmp_path: Path) -> None:
    tensors = {"neck.fpn_convs.0.conv.bias": torch.zeros(1)}
    for meta, expected in (
        ({"CLASSES": ("cat", "dog")}, ("cat", "dog")),
        ({"dataset_meta": {"classes": ["cat", "dog"], "palette": [1]}}, ("cat", "dog")),
        ({"dataset_meta": {"CLASSES": ["cat", "dog"]}, "CLASSES": ["old"]}, ("cat", "dog")),
        ({"CLASSES": None}, None),
        ({"CLASSES": ["cat", 3]}, None),
        ("epoch 12", None),
    ):
        torch.save({"state_dict": tensors, "meta": meta}, tmp_path / "mmdet.pth")
        assert read_weights(tmp_path / "mmdet.pth").class_names == expected
