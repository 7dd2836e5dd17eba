from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision import ops

from torchdcn.models.pooling import MultiScaleRoIPool, RoIAlign, build_pool
from torchdcn.models.zoo import settings_of
from torchdcn.nn import DeformRoIPoolPack, ModulatedDeformRoIPoolPack

BOXES = torch.tensor([[0, 4.0, 3, 40, 30], [1, -9.0, 5, 25, 80], [0, 7.0, 7, 7.5, 9], [1, 0.0, 0, 64, 64]])


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_is_torchvisions_forward_and_backward(ratio: int):
    torch.manual_seed(0)
    pooled, gradients = [], []
    ours, theirs = (kind((7, 5), 1 / 4, ratio, aligned=True) for kind in (RoIAlign, ops.RoIAlign))
    x, weight = torch.randn(2, 6, 16, 16), torch.randn(4, 6, 7, 5)
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        pooled.append(layer(leaf, BOXES))
        gradients.append(torch.autograd.grad((pooled[-1] * weight).sum(), leaf)[0])
    torch.testing.assert_close(*pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    assert ours(x, BOXES[:0]).shape == (0, 6, 7, 5)


def test_roi_align_of_low_precision_is_computed_in_full():
    x = torch.randn(2, 6, 16, 16).bfloat16()
    expected = ops.RoIAlign((7, 7), 1 / 4, 0, aligned=True)(x.float(), BOXES)
    found = RoIAlign((7, 7), 1 / 4, 0, aligned=True)(x, BOXES)
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=1e-2)


def test_what_is_exported_has_torchvisions_operator():
    program = torch.export.export(RoIAlign((7, 7), 1 / 4, 0, aligned=True), (torch.randn(2, 6, 16, 16), BOXES))
    assert torch.ops.torchvision.roi_align.default in [node.target for node in program.graph.nodes]


@pytest.mark.parametrize(
    ("name", "layers", "kind"),
    [
        ("faster_rcnn_r50_fpn", 4, RoIAlign),
        ("faster_rcnn_r50_fpn_dpool", 4, DeformRoIPoolPack),
        ("faster_rcnn_r50_fpn_mdpool", 4, ModulatedDeformRoIPoolPack),
        ("faster_rcnn_r50_dcnv2", 1, ModulatedDeformRoIPoolPack),
    ],
)
def test_each_level_has_a_layer_of_its_own(name: str, layers: int, kind: type[nn.Module]):
    settings = settings_of(name)
    with torch.device("meta"):
        pool = build_pool(settings, 7, settings.pool)
    assert [type(layer) for layer in pool.layers] == [kind] * layers
    assert [layer.spatial_scale for layer in pool.layers] == (
        [1 / 4, 1 / 8, 1 / 16, 1 / 32] if layers == 4 else [1 / 16]
    )
    if kind is not RoIAlign:
        assert len({id(p) for p in pool.parameters()}) == layers * len(list(pool.layers[0].parameters()))
        assert all(layer.deform_fc_channels == 1024 and layer.gamma == 0.1 for layer in pool.layers)
        assert pool.layers[0].sampling_ratio == 0


def test_the_papers_packs_have_one_trunk_and_mmcvs_have_two_branches():
    settings = settings_of("faster_rcnn_r50_dcnv2", pool_channels=8)
    assert [name for name, _ in build_pool(settings, 7, "mdpool").layers[0].named_children()] == ["offset_mask_fc"]
    settings = settings_of("faster_rcnn_r50_fpn_mdpool", pool_channels=8)
    assert [n for n, _ in build_pool(settings, 7, "mdpool").layers[0].named_children()] == ["offset_fc", "mask_fc"]


@pytest.mark.parametrize(("kind", "factor"), [("dpool", 1.0), ("mdpool", 0.5)])
def test_new_packs_pool_as_roi_align_and_mdpool_halves_it(kind: str, factor: float):
    settings = settings_of("faster_rcnn_r18_fpn", fpn_channels=4, pool_channels=8)
    maps = {str(i): torch.randn(1, 4, n, n) for i, n in enumerate((32, 16, 8, 4, 2))}
    boxes = [torch.tensor([[3.0, 5, 60, 50], [0, 0, 128, 120]])]
    plain = build_pool(settings, 7, None)(maps, boxes, [(128, 128)])
    torch.testing.assert_close(build_pool(settings, 7, kind)(maps, boxes, [(128, 128)]), factor * plain)


class Mean(nn.Module):
    def forward(self, x: Any, rois: Any) -> Any:
        return x.mean().expand(len(rois), 1, 1, 1)


def test_a_single_layer_pools_all_boxes_from_the_map_that_it_is_for():
    maps = {"conv4": torch.zeros(1, 1, 4, 4), "conv5": torch.ones(1, 1, 4, 4)}
    boxes = [torch.tensor([[0.0, 0, 8, 8], [0, 0, 800, 800]])]
    assert MultiScaleRoIPool([Mean()], first=1)(maps, boxes, [(64, 64)]).flatten().tolist() == [1, 1]
