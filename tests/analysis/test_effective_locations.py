from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from torchdcn.analysis import (
    Node,
    effective_receptive_field,
    effective_sampling_locations,
    response,
    sampling_locations,
)
from torchdcn.nn import DeformConv2d, DeformConv2dPack, DeformRoIPool, ModulatedDeformConv2dPack, deformable
from torchdcn.ops import deform_conv2d

STEP = 1e-6


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(model: nn.Module, layer: Any, image: Tensor, node: Node, at: tuple[int, ...]) -> float:
    """The response's change by the offset at an index, from both sides."""
    predict = layer.predict
    ends = []
    for step in (STEP, -STEP):

        def changed(given: Tensor, step: float = step) -> tuple[Tensor, Tensor | None]:
            offset, mask = predict(given)
            offset = offset.clone()
            offset[at] += step
            return offset, mask

        layer.predict = changed
        ends.append(float(response(model, image, node)))
        del layer.predict
    return (ends[0] - ends[1]) / (2 * STEP)


def test_strengths_are_what_moving_the_samples_does(stirred: Any, unchanged: Any) -> None:
    torch.manual_seed(0)
    net = stirred(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            DeformConv2dPack(4, 4, 3, stride=2, padding=2, dilation=2, deform_groups=2),
            ModulatedDeformConv2dPack(4, 4, (3, 1), padding=(1, 0)),
            nn.Tanh(),
        )
    )
    image, node = picture(20, 24), Node("4", y=4, x=5)
    with unchanged(net):
        found = effective_sampling_locations(net, image, node)
    assert found.layers == ("2", "3")
    assert found.points.dtype == torch.float64
    torch.testing.assert_close(found.strengths, found.gradients.norm(dim=1))
    for name, taps, stride_in in (("2", 18, 1), ("3", 3, 2)):
        of = found.of(name)
        points, moves = (tensor.reshape(taps, 10, 12, 2) for tensor in (of.points, of.gradients))
        offset, mask = net[int(name)].predict(net[: int(name)](image[None]))
        assert of.weights.allclose(torch.ones(1).double() if mask is None else mask.reshape(-1))
        for tap, row, column in ((0, 4, 5), (taps - 1, 4, 5), (1, 3, 5)):
            for axis in (0, 1):  # y, x
                change = moved(net, net[int(name)], image, node, (0, 2 * tap + axis, row, column))
                assert float(moves[tap, row, column, 1 - axis]) * stride_in == pytest.approx(change, rel=1e-5, abs=1e-9)
            kernel = (2 * row - 2 + 2 * (tap % 9 // 3), 2 * column - 2 + 2 * (tap % 3))
            kernel = kernel if name == "2" else (row - 1 + tap, column)
            shift = offset[0, 2 * tap : 2 * tap + 2, row, column].tolist()
            place = [(kernel[1] + shift[1]) * stride_in, (kernel[0] + shift[0]) * stride_in]
            assert points[tap, row, column].tolist() == pytest.approx(place)
    assert float(found.of("3").strengths.max()) > 0


def test_in_a_detector_too_in_pixels_of_the_image_given(detector: Any, unchanged: Any) -> None:
    model = detector(norm="bn_eval")  # GroupNorm ties all positions to each other
    image, node = picture(128, 192), Node("backbone.body.layer4", y=1, x=2)
    with unchanged(model):
        found = effective_sampling_locations(model, image, node, layers="backbone.body.layer[34].*.conv2")
    assert found.layers == tuple(f"backbone.body.layer{stage}.{block}.conv2" for stage in (3, 4) for block in (0, 1))
    of = found.of("*layer4.1.conv2")
    # The only output that matters is the node's own, and its samples are the raw ones.
    used = of.strengths.reshape(9, 2, 3)[:, 1, 2] > 0
    assert int((of.strengths > 0).sum()) == int(used.sum()) > 0
    raw = sampling_locations(model, image, node, depth=1)
    torch.testing.assert_close(of.points.reshape(9, 2, 3, 2)[:, 1, 2], raw.points)
    torch.testing.assert_close(found.centre, raw.centre)
    layer = model.get_submodule("backbone.body.layer3.0.conv2")
    best = int(found.of("*layer3.0.conv2").strengths.argmax())
    tap, row, column = best // 24, best % 24 // 6, best % 6
    change = [moved(model, layer, image, node, (0, 2 * tap + axis, row, column)) for axis in (1, 0)]
    # Its input has stride 16, and the image was halved.
    gradient = found.of("*layer3.0.conv2").gradients[best] * 32
    assert gradient.tolist() == pytest.approx(change, rel=1e-4, abs=1e-9)


def test_in_a_network_of_torchvision_made_deformable(stirred: Any, unchanged: Any) -> None:
    torch.manual_seed(0)
    net = deformable(torchvision.models.resnet18(), where="layer[34].*.conv2")
    net = stirred(net)
    image, node = picture(64, 96), Node("layer4", y=1, x=1)
    with unchanged(net):
        found = effective_sampling_locations(net, image, node)
    assert found.layers == tuple(f"layer{stage}.{block}.conv2" for stage in (3, 4) for block in (0, 1))
    of = found.of("layer3.1.conv2")
    best = int(of.strengths.argmax())
    tap, row, column = best // 24, best % 24 // 6, best % 6
    net.eval()
    layer = net.get_submodule("layer3.1.conv2")
    change = [moved(net, layer, image, node, (0, 2 * tap + axis, row, column)) for axis in (1, 0)]
    assert (of.gradients[best] * 16).tolist() == pytest.approx(change, rel=1e-4, abs=1e-9)
    assert float(effective_receptive_field(net, image, node).map.max()) > 0


def test_bins_of_modulated_pooling(detector: Any, unchanged: Any) -> None:
    model, image, node = detector(mdpool=True), picture(128, 192), Node(roi=(40.0, 20.0, 140.0, 100.0))
    with unchanged(model):
        found = effective_sampling_locations(model, image, node)
    [name] = [name for name in found.layers if "pool" in name]
    bins, layer = found.of(name), model.get_submodule(name)
    assert bins.points.shape == (49, 2)
    assert 0 < float(bins.weights.min()) < float(bins.weights.max()) < 1
    raw = sampling_locations(model, image, node)
    assert raw.layers == (name,)
    torch.testing.assert_close(raw.points, bins.points)
    torch.testing.assert_close(raw.weights, bins.weights)
    torch.testing.assert_close(raw.regular.mean(0), torch.tensor([89.5, 59.5]).double())
    torch.testing.assert_close(raw.regular[0], torch.tensor([40 + 50 / 7 - 0.5, 20 + 40 / 7 - 0.5]).double())
    for k in (0, 17, 48):
        change = [moved(model, layer, image, node, (0, axis, *divmod(k, 7))) for axis in (0, 1)]
        moves = [float(bins.gradients[k, 0]) * 0.1 * 100, float(bins.gradients[k, 1]) * 0.1 * 80]
        assert moves == pytest.approx(change, rel=1e-5, abs=1e-9)


def test_bins_of_roi_align_stay_where_they_are_and_have_strengths(detector: Any) -> None:
    model, image, node = detector(), picture(128, 192), Node(roi=(40.0, 20.0, 140.0, 100.0))
    found = effective_sampling_locations(model, image, node, layers="roi_heads.box_roi_pool.*")
    torch.testing.assert_close(found.points, sampling_locations(model, image, node).regular)
    assert float(found.strengths.max()) > 0
    assert found.response == pytest.approx(float(response(model, image, node)), rel=1e-12)


@pytest.mark.parametrize("padding", [1, "same", (0, 2)])
def test_ordinary_convolutions_have_places_too(padding: Any) -> None:
    torch.manual_seed(0)
    strided = {"stride": 1} if padding == "same" else {"stride": 2}
    conv = nn.Conv2d(4, 6, 3, padding=padding, dilation=2, groups=2, **strided)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(inplace=True), nn.Conv2d(6, 2, 3)).double()
    image, node = picture(14, 16), Node("3", y=2, x=3)
    found = effective_sampling_locations(net, image, node)
    assert found.layers == ("1", "3")  # none of 1 x 1
    x = net[0](image[None]).detach()
    size = net[1](x).shape[2:]
    moves = found.of("1").gradients.reshape(9, *size, 2)
    amount = {"same": (2, 2)}.get(padding, padding)
    for tap, row, column in ((0, 2, 3), (5, 3, 4), (8, 4, 5), (3, 2, 3)):
        for axis in (0, 1):
            ends = []
            for step in (1e-4, -1e-4):
                offset = torch.zeros(1, 18, *size, dtype=torch.float64)
                offset[0, 2 * tap + axis, row, column] = step
                y = deform_conv2d(x, offset, conv.weight, conv.bias, conv.stride, amount, conv.dilation)
                ends.append(net[3](net[2](y))[0, :, 2, 3].mean().item())
            change = (ends[0] - ends[1]) / 2e-4
            assert float(moves[tap, row, column, 1 - axis]) == pytest.approx(change, rel=1e-6, abs=1e-9)


def test_before_the_first_deformable_layer_the_ordinary_ones_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), DeformConv2dPack(4, 4, 3))
    assert effective_sampling_locations(net, torch.rand(3, 9, 9), Node("1", 3, 3)).layers == ("0",)
    assert effective_sampling_locations(net, torch.rand(3, 9, 9), Node("2", 3, 3)).layers == ("2",)


@pytest.mark.parametrize("kind", [DeformConv2d, torchvision.ops.DeformConv2d])
def test_offsets_from_outside_are_seen(kind: Any) -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = kind(3, 2, 3, padding=1)
            self.offset = nn.Parameter(torch.full((1, 18, 8, 8), 0.3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.conv(x, offset=self.offset)
            return result

    net = Given()
    found = effective_sampling_locations(net, torch.rand(3, 8, 8), Node("conv", y=4, x=5))
    used = found.points[found.strengths > 0]
    torch.testing.assert_close(used[0], torch.tensor([4.3, 3.3]))
    assert len(used) == 9
    assert net.offset.grad is None
    assert net.offset.requires_grad


def test_a_pool_that_is_given_its_offsets_is_seen() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = DeformRoIPool(2, gamma=0.5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.pool(x, [x.new_tensor([[2.0, 2.0, 6.0, 10.0]])])
            return result

    found = effective_sampling_locations(Given(), torch.rand(3, 12, 12), Node("pool", y=1, x=0))
    assert found.points.tolist() == [[2.5, 3.5], [4.5, 3.5], [2.5, 7.5], [4.5, 7.5]]
    assert (found.strengths > 0).tolist() == [False, False, True, False]


def test_the_strongest_come_first_and_patterns_choose(stirred: Any) -> None:
    net = stirred(nn.Sequential(*[ModulatedDeformConv2dPack(3, 3, 3, padding=1) for _ in range(2)]))
    found = effective_sampling_locations(net, picture(16, 16), Node("1", y=8, x=8))
    best = found.strongest(5)
    assert best.strengths.tolist() == sorted(found.strengths.tolist(), reverse=True)[:5]
    assert len(best.points) == len(best.layer) == 5
    with pytest.raises(ValueError, match="pattern: 'a' fits none of 0, 1"):
        found.of("a")


def test_layers_that_are_not_there_raise_one_line(detector: Any, unchanged: Any) -> None:
    model, image = detector(), picture(64, 96)
    node = Node("backbone.body.layer3", 0, 0)
    for layers, message in [
        ("backbone.body.layer4.0.convv2", "fits no convolution .*did you mean 'backbone.body.layer4.0.conv2'"),
        (["backbone.body.layer4.*.conv2"], "none of them is used on the way to Node"),
    ]:
        with unchanged(model), pytest.raises(ValueError, match=f"^layers: .*{message}"):
            effective_sampling_locations(model, image, node, layers)
