from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchdcn.analysis import Node, effective_receptive_field, response
from torchdcn.nn import ModulatedDeformConv2dPack

BOX = Node(roi=(20.0, 30.0, 100.0, 110.0))
PLACE = Node("backbone.body.layer4", y=1, x=2)


def picture(height: int = 128, width: int = 192, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("node", "mdpool"), [(PLACE, False), (BOX, False), (BOX, True), (Node("backbone.fpn.layer_blocks.1", 3, 5), False)],
    ids=["layer", "box", "box, modulated pooling", "pyramid"],
)  # fmt: skip
def test_the_gradient_is_what_changing_pixels_does(detector: Any, unchanged: Any, node: Node, mdpool: bool) -> None:
    model, image = detector(mdpool=mdpool), picture()
    with unchanged(model):
        found = effective_receptive_field(model, image, node)
    assert found.gradient.dtype == torch.float64
    assert found.gradient.shape == (3, 128, 192)
    torch.testing.assert_close(found.map, found.gradient.norm(dim=0))
    assert found.response == float(response(model, image, node))
    for at in [(0, *divmod(int(found.map.argmax()), 192)), (1, 60, 80), (2, 5, 190)]:
        ends = []
        for step in (1e-7, -1e-7):
            moved = image.clone()
            moved[at] += step
            ends.append(float(response(model, moved, node)))
        change = (ends[0] - ends[1]) / 2e-7
        assert float(found.gradient[at]) == pytest.approx(change, rel=1e-4, abs=1e-7)


def test_it_covers_what_the_layers_reach_and_nothing_else(stirred: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3, stride=2, padding=1))
    found = effective_receptive_field(stirred(net), picture(32, 40), Node("2", y=5, x=7))
    rows, columns = found.map.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 12, 12, 16)
    assert found.centre.tolist() == [14, 10]


def test_the_response_is_the_mean_over_the_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Dropout())
    image = torch.rand(3, 8, 8)
    expected = net[0](image)[:, 2, 3].mean()
    torch.testing.assert_close(response(net, image, Node("1", y=2, x=3)), expected)


def test_the_response_is_differentiable_by_the_image_and_leaves_the_parameters_alone() -> None:
    net = nn.Sequential(ModulatedDeformConv2dPack(3, 5, 3, padding=1))
    image = torch.rand(3, 8, 8, requires_grad=True)
    node = Node("0", y=2, x=3)
    response(net, image, node).backward()
    assert image.grad is not None
    torch.testing.assert_close(image.grad, effective_receptive_field(net, image, node).gradient)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_it_works_under_no_grad_and_inference_mode() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert effective_receptive_field(net, torch.rand(3, 8, 8), Node("0", 2, 3)).map.sum() > 0


def test_the_model_is_left_as_it_was_after_an_exception(detector: Any, unchanged: Any) -> None:
    model = detector()
    for node in (Node("backbone.body.layer4", 99, 0), Node("backbone", 0, 0), Node("roi_heads", 0, 0)):
        with unchanged(model), pytest.raises(ValueError, match=r"^node: "):
            effective_receptive_field(model, picture(64, 64), node)


def test_bad_input_is_one_clear_line(detector: Any) -> None:
    model, net, image = detector(), nn.Sequential(nn.Conv2d(3, 5, 3)), picture(64, 96)
    for given, node, message in [
        (image[None], PLACE, r"image: expected a tensor \[3, H, W\], got \[1, 3, 64, 96\]"),
        (image, Node(roi=(100, 0, 120, 20)), r"node: roi .* is outside of the image of 96 x 64 pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            effective_receptive_field(model, given, node)
    with pytest.raises(ValueError, match=r"node: a roi needs a detector"):
        effective_receptive_field(net, image, BOX)
    with pytest.raises(TypeError, match=r"image: expected floats .*divide bytes by 255"):
        response(net, (255 * image).byte(), Node("0", 0, 0))


def test_a_network_without_gradients_says_so() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                result: torch.Tensor = self.conv(x)
            return result

    with pytest.raises(ValueError, match="does not depend on the image by differentiable steps"):
        effective_receptive_field(Frozen(), torch.rand(3, 8, 8), Node("conv", 0, 0))
