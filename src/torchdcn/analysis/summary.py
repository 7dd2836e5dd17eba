"""Numbers about what a node depends on, so that networks can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .effective_locations import EffectiveLocations
from .raw_locations import SamplingLocations
from .receptive_field import ReceptiveField
from .saliency import SaliencyRegion

if TYPE_CHECKING:
    from torch import Tensor

Support = EffectiveLocations | ReceptiveField | SaliencyRegion | SamplingLocations


@dataclass(frozen=True)
class SupportSummary:
    """The result of :func:`support_summary`. Each support is a set of places with shares p >= 0 that sum to 1.

    Attributes:
        inside: The sum of the shares that lie inside the object's mask; None where no mask was given. A place lies in
            the pixel that is nearest to it; places outside of the image lie outside of the object.
        radius: ``sqrt(sum p |place - mean|^2)`` in pixels, where ``mean = sum p place``: how far it spreads.
        distance: ``|mean - centre|`` in pixels: how far the support lies from the node; None for a region, which has
            no centre of its own.
        entropy: ``-sum p_i log2 p_i`` in bits, of the shares summed per pixel: 0 for a single pixel, ``log2 n`` for
            an even spread over n of them. Places outside of the image count as one more pixel.
    """

    inside: float | None
    radius: float
    distance: float | None
    entropy: float


def support_summary(support: Support, mask: Tensor | None = None) -> SupportSummary:
    """How much of a node's support lies on an object, how far it spreads, and over how many pixels.

    Shares are the receptive field's map, the effective locations' strengths, the raw locations' weights, each divided
    by its sum, and for a region the same for each of its pixels.

    Args:
        support: What one of this package's functions found.
        mask: ``[H, W]``, the object's pixels; of the image's size.

    Raises:
        ValueError: A mask of a wrong shape, or a support that is zero everywhere.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.analysis import Node, effective_receptive_field, support_summary
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
        >>> field = effective_receptive_field(net, torch.rand(3, 32, 32), Node("0", y=16, x=10))
        >>> bool(support_summary(field, torch.ones(32, 32)).inside > 0.999)
        True
    """
    places, shares, size = _shares(support)
    total = float(shares.sum())
    if not total > 0:
        raise ValueError("support: expected something above zero, but the node depends on nothing here")
    shares = shares / total
    mean = shares @ places
    radius = float((shares @ (places - mean).square().sum(1)).sqrt())
    centre = getattr(support, "centre", None)
    distance = None if centre is None else float((mean - centre.double()).norm())
    if mask is not None and (mask.ndim != 2 or tuple(mask.shape) != size):
        raise ValueError(f"mask: expected shape {list(size)}, got {list(mask.shape)}")
    column, row = places.round().long().unbind(1)
    on_image = (row >= 0) & (column >= 0) & (row < size[0]) & (column < size[1])
    inside = None
    if mask is not None:
        on_object = mask.bool().cpu()[row.clamp(0, size[0] - 1), column.clamp(0, size[1] - 1)] & on_image
        inside = float(shares[on_object].sum())
    pixel = torch.where(on_image, row * size[1] + column, -1)
    _, index = pixel.unique(return_inverse=True)
    summed = shares.new_zeros(int(index.max()) + 1).index_add(0, index, shares)
    entropy = float(-(summed * summed.clamp(min=1e-300).log2()).sum())
    return SupportSummary(inside, radius, distance, max(0.0, entropy))


def is_empty(support: Support) -> bool:
    """Whether a support is zero everywhere, so that it has no numbers."""
    return not bool(_shares(support)[1].any())


def _shares(support: Support) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Places ``[M, 2]`` as x, y, what each counts, and the image's size."""
    if isinstance(support, EffectiveLocations):
        return support.points.double(), support.strengths.double(), support.image_size
    if isinstance(support, SamplingLocations):
        return support.points.double(), support.weights.double(), support.image_size
    density = (support.map if isinstance(support, ReceptiveField) else support.mask).double()
    height, width = density.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2).double(), density.reshape(-1), (height, width)
