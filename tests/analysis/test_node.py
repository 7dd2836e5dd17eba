from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchdcn.analysis import Node, node_at


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected a layer's name with ints y and x, or roi"),
        ({"layer": "a"}, "y=None, x=None"),
        ({"layer": "a", "y": 1.5, "x": 0}, "y=1.5"),
        ({"layer": "a", "y": 1, "x": 0, "roi": (0, 0, 1, 1)}, "got both"),
        ({"roi": (0, 0, 1)}, r"expected roi=\(x1, y1, x2, y2\), got \(0, 0, 1\)"),
        ({"roi": (5, 0, 5, 1)}, "x2 > x1"),
        ({"roi": (0, 0, float("inf"), 1)}, "all finite"),
    ],
)
def test_what_is_no_node_raises_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^node: .*{message}"):
        Node(**arguments)


def test_the_node_at_a_pixel_is_the_nearest() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1))
    image = torch.rand(3, 64, 60)
    assert node_at(net, image, "0", x=21, y=40) == Node("0", y=10, x=5)
    assert node_at(net, image, "0", x=59, y=63) == Node("0", y=15, x=14)
    assert node_at(net, image, "0", x=-0.5, y=0) == Node("0", y=0, x=0)
    with pytest.raises(ValueError, match=r"^x, y: expected a pixel of the image of 60 x 64, got 60, 3"):
        node_at(net, image, "0", x=60, y=3)


def test_the_node_at_a_pixel_of_a_resized_image(detector: Any) -> None:
    # 128 x 192 becomes 64 x 96: a step of stride 16 is 32 pixels of the image.
    node = node_at(detector(), torch.rand(3, 128, 192), "backbone.body.layer3", x=100, y=30)
    assert node == Node("backbone.body.layer3", y=1, x=3)
