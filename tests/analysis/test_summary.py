from __future__ import annotations

import pytest
import torch
from torch import nn

from torchdcn.analysis import (
    Node,
    ReceptiveField,
    SamplingLocations,
    effective_receptive_field,
    effective_sampling_locations,
    saliency_region,
    sampling_locations,
    support_summary,
)
from torchdcn.nn import ModulatedDeformConv2dPack


def field(values: torch.Tensor, centre: tuple[float, float] = (0, 0)) -> ReceptiveField:
    return ReceptiveField(values[None].expand(3, -1, -1), values, 0.0, torch.tensor(centre))


def test_an_even_spread_over_four_pixels_has_two_bits() -> None:
    values = torch.zeros(8, 10)
    values[2, 3] = values[2, 5] = values[6, 3] = values[6, 5] = 0.3
    summary = support_summary(field(values, (4.0, 1.0)))
    assert summary.entropy == pytest.approx(2)
    assert summary.radius == pytest.approx(5**0.5)
    assert summary.distance == pytest.approx(3)
    assert summary.inside is None


def test_the_share_inside_a_mask() -> None:
    values = torch.zeros(8, 10)
    values[2, 3], values[7, 7] = 3, 1
    mask = torch.zeros(8, 10)
    mask[:4] = 1
    assert support_summary(field(values), mask).inside == pytest.approx(0.75)


def test_places_outside_of_the_image_lie_outside_of_the_object() -> None:
    points = torch.tensor([[1.2, 0.9], [-5.0, 2.0], [3.0, 90.0], [0.9, 1.4]])
    found = SamplingLocations(points, torch.tensor([1.0, 1, 1, 1]), points, points[0], ("a",), (4, 4))
    summary = support_summary(found, torch.ones(4, 4, dtype=torch.bool))
    assert summary.inside == pytest.approx(0.5)
    assert summary.entropy == pytest.approx(1)  # one pixel of the image, and all that is outside


def test_every_kind_of_support_has_numbers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ModulatedDeformConv2dPack(3, 8, 3, padding=1)).double()
    image, node = torch.rand(3, 16, 16).double(), Node("0", y=8, x=4)
    mask = torch.ones(16, 16)
    found = [function(net, image, node) for function in (
        effective_receptive_field, effective_sampling_locations, sampling_locations, saliency_region,
    )]  # fmt: skip
    for support in found:
        summary = support_summary(support, mask)
        assert summary.inside == pytest.approx(1)
        assert 0 <= summary.radius < 8
        assert 0 <= summary.entropy <= 8


def test_bad_masks_and_empty_supports_raise_one_line() -> None:
    with pytest.raises(ValueError, match=r"^mask: expected shape \[8, 10\], got \[8, 9\]"):
        support_summary(field(torch.ones(8, 10)), torch.ones(8, 9))
    with pytest.raises(ValueError, match=r"^support: expected something above zero"):
        support_summary(field(torch.zeros(8, 10)))
