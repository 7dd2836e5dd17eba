from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchdcn import models
from torchdcn.analysis import Node, sampling_locations
from torchdcn.nn import DeformConv2dPack, ModulatedDeformConv2dPack


def shifted(layer: DeformConv2dPack, offsets: Tensor) -> DeformConv2dPack:
    """A layer that uses the same offsets everywhere: ``[2 G K]`` as dy, dx."""
    with torch.no_grad():
        layer.conv_offset.bias[: len(offsets)] = offsets
    return layer


def integers(count: int, seed: int) -> Tensor:
    return torch.randint(-2, 3, (count,), generator=torch.Generator().manual_seed(seed)).double()


def test_without_offsets_the_samples_are_the_regular_grid() -> None:
    net = nn.Sequential(*[ModulatedDeformConv2dPack(3, 3, 3, padding=1) for _ in range(3)])
    found = sampling_locations(net, torch.rand(3, 32, 32), Node("2", y=16, x=10))
    assert found.points.shape == (729, 2)
    assert found.layers == ("2", "1", "0")
    torch.testing.assert_close(found.points, found.regular)
    torch.testing.assert_close(found.weights, torch.full((729,), 0.125))
    assert found.centre.tolist() == [10, 16]
    assert sorted({tuple(p) for p in found.regular.tolist()}) == [(x, y) for x in range(7, 14) for y in range(13, 20)]


@pytest.mark.parametrize("modulated", [False, True])
def test_the_samples_are_where_the_gradient_with_respect_to_the_image_is(modulated: bool) -> None:
    torch.manual_seed(0)
    pack = ModulatedDeformConv2dPack if modulated else DeformConv2dPack
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        shifted(pack(4, 4, 3, padding=2, dilation=2, deform_groups=2), integers(36, 1)),
        shifted(pack(4, 4, (3, 1), stride=2, padding=(1, 0)), integers(6, 2)),
        nn.Conv2d(4, 2, 1),
        shifted(pack(2, 2, 3, padding=1), integers(18, 3)),
    ).double()
    image = torch.rand(3, 40, 48, dtype=torch.float64, requires_grad=True)
    net(image[None])[0, :, 9, 14].sum().backward()
    found = sampling_locations(net, image.detach(), Node("4", y=9, x=14))
    assert found.points.dtype == torch.float64
    touched = {(int(x), int(y)) for y, x in image.grad.abs().sum(0).nonzero().tolist()}
    assert {tuple(point) for point in found.points.round().int().tolist()} == touched
    assert len(found.points) == 9 * 3 * 18
    assert found.centre.tolist() == [28, 18]


def test_samples_outside_of_their_map_have_no_weight() -> None:
    net = nn.Sequential(shifted(DeformConv2dPack(3, 3, 1), torch.tensor([0.0, -7.0])))
    assert sampling_locations(net, torch.rand(3, 16, 16), Node("0", 5, 3)).weights.tolist() == [0]
    found = sampling_locations(net, torch.rand(3, 16, 16), Node("0", 5, 7))
    assert found.weights.tolist() == [1]
    assert found.points.tolist() == [[0, 5]]


def test_depth_says_how_many_layers_to_go_back() -> None:
    net = nn.Sequential(*[DeformConv2dPack(3, 3, 3, padding=1) for _ in range(4)])
    counts = [len(sampling_locations(net, torch.rand(3, 16, 16), Node("3", 8, 8), depth=d).points) for d in (1, 2, 9)]
    assert counts == [9, 81, 9**4]


def test_a_detectors_samples_are_in_pixels_of_the_image_that_it_was_given() -> None:
    model = models.create_model("mask_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, min_size=64, max_size=96).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.rpn.eval()
    found = sampling_locations(model, torch.rand(3, 128, 192), Node("backbone.body.layer4", y=1, x=2))
    assert found.layers[:2] == ("backbone.body.layer4.1.conv2", "backbone.body.layer4.0.conv2")
    torch.testing.assert_close(found.centre, torch.tensor([64.5, 32.5]).double() * 2 - 0.5)
    torch.testing.assert_close(found.regular.mean(0), found.centre)
    assert model.training
    assert not model.rpn.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("backbone.body.layer5", 0, 0), "did you mean 'backbone.body.layer4'"),
        (Node("foo", 0, 0), "has no layer 'foo'; its parts are transform, backbone, rpn, roi_heads$"),
        (Node("backbone.body.layer4", 2, 0), r"y in 0\.\.1"),
        (Node("backbone.body.layer4", 0, -1), r"x in 0\.\.2"),
        (Node("backbone.body.layer1", 0, 0), "no deformable layer"),
        (Node("backbone", 0, 0), "one map"),
    ],
)
def test_nodes_that_do_not_exist_raise_one_line(node: Node, message: str) -> None:
    model = models.create_model("faster_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, min_size=64, max_size=96)
    with pytest.raises(ValueError, match=f"^node: .*{message}"):
        sampling_locations(model, torch.rand(3, 64, 96), node)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("image", "depth", "name"), [(torch.rand(1, 3, 8, 8), 3, "image"), (torch.rand(3, 8, 8), 0, "depth")]
)
def test_wrong_arguments_are_named(image: Any, depth: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        sampling_locations(nn.Sequential(DeformConv2dPack(3, 3, 3)), image, Node("0", 0, 0), depth)
