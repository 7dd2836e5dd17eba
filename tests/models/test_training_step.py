"""One training step of each kind of model: offsets and masks learn once they have left zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchdcn.models import create_model
from torchdcn.nn import DeformRoIPoolPack

TINY = {
    "num_classes": 2,
    "min_size": 64,
    "max_size": 96,
    "fpn_channels": 16,
    "box_head_channels": 16,
    "pool_channels": 16,
    "mask_head_channels": (8,),
    "rpn_batch_size_per_image": 5000,  # all anchors: of a few, none may be of the coarsest level
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 50,
    "box_batch_size_per_image": 32,
}
KINDS = [
    ("faster_rcnn_r18_fpn", {}),
    ("mask_rcnn_r18_fpn_dconv_c3-c5", {}),
    ("faster_rcnn_r50_fpn_mdconv_c3-c5", {}),
    ("faster_rcnn_r50_fpn_mdconv_c3-c5_group4", {}),
    ("mask_rcnn_r18_fpn_dpool", {}),
    ("faster_rcnn_r50_fpn_mdpool", {}),
    ("mask_rcnn_r18_fpn_mdconv_c3-c5_mdpool", {"pool_masks": True}),
    ("mask_rcnn_r50_fpn_mdconv_c3-c5", {"norm": "frozen_bn", "trainable_backbone_layers": 3}),
    ("faster_rcnn_x101-32x4d_fpn_mdconv_c3-c5", {"deform_stages": ("c5",)}),
    ("faster_rcnn_r50_dcnv2", {}),
    ("mask_rcnn_r50_dcnv2", {}),
    ("faster_rcnn_r50_dcnv2", {"conv": "dconv", "deform_stages": ("c5",), "pool": "dpool"}),  # DCNv1's
]


def perturbed(model: nn.Module) -> None:
    """What starts at zero, offsets and masks among it, away from there: else nothing behind it has a gradient."""
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.01)


def all_from_one_level(pool: nn.Module, level: int) -> None:
    pool.levels = lambda boxes: torch.full((len(boxes),), level)


@pytest.mark.parametrize(("name", "overrides"), KINDS, ids=[" ".join([n, *map(str, o.values())]) for n, o in KINDS])
def test_a_step_gives_every_trained_parameter_a_finite_gradient(name: str, overrides: Any, target: Any):
    torch.manual_seed(0)
    model = create_model(name, **(TINY | overrides))
    perturbed(model)
    losses = model([torch.rand(3, 64, 80)], [target((8, 8, 40, 40), (30, 20, 70, 60), labels=[0, 1])])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    # Objects this small are all pooled from the finest level; the packs of the others have gradients of zero.
    coarser = tuple(f"roi_heads.{kind}_roi_pool.layers.{i}" for kind in ("box", "mask") for i in (1, 2, 3))
    assert [key for key, p in trained.items() if not p.grad.any() and not key.startswith(coarser)] == []


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_packs_of_every_level_learn(level: int, target: Any):
    torch.manual_seed(0)
    model = create_model("faster_rcnn_r18_fpn_mdpool", **TINY)
    perturbed(model)
    all_from_one_level(model.roi_heads.box_roi_pool, level)
    losses = model([torch.rand(3, 64, 80)], [target((8, 8, 40, 40), labels=[0])])
    sum(losses.values()).backward()
    for i, pack in enumerate(model.roi_heads.box_roi_pool.layers):
        assert isinstance(pack, DeformRoIPoolPack)
        assert all(bool(p.grad.any()) == (i == level) for p in pack.parameters())


@pytest.mark.parametrize("name", ["faster_rcnn_r18_fpn_mdpool", "mask_rcnn_r50_dcnv2"])
def test_deformable_pooling_trains_and_detects_under_autocast(name: str, target: Any):
    torch.manual_seed(0)
    model = create_model(name, **TINY)
    perturbed(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([torch.rand(3, 64, 80)], [target((8, 8, 40, 40), labels=[0])])
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.eval().bfloat16()
    with torch.no_grad():
        [found] = model([torch.rand(3, 64, 80, dtype=torch.bfloat16)])
    assert found["boxes"].dtype == torch.float32
