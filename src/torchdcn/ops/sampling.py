"""Bilinear sampling in plain PyTorch, and what else the references of the operators share.

``bilinear`` is the definition: a map that is zero outside, read at any real position. Its three steps are functions of
their own: ``find_cell`` (which four pixels), ``read_pixels`` (their values), ``blend`` (how much of each). A backward
pass in bounded memory differentiates the blending alone, and adds to the pixels' gradients by ``scatter``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BUDGET = 2**27
"""Bytes that a reference's ``forward`` or ``backward`` holds at a time for samples and what is computed of them."""


def bilinear(
    input: Tensor,  # [N, C, H, W]
    y: Tensor,  # [N, G, P]: one position for all C / G channels of a group
    x: Tensor,  # [N, G, P]
    image: Tensor | None = None,  # [P]: which map each position is on, instead of one for each n; then N = G = 1 above
) -> Tensor:  # [N, G, C / G, P]
    """Samples a map that is zero outside, at any real position.

    Up to one pixel outside, a sample still blends with the border; further out it is 0, at infinity too. A NaN in
    either coordinate gives NaN. The derivative is that of the cell which ``floor`` picks, so on a grid line it is
    the one from below and from the right, as in torchvision.
    """
    size = input.shape[2], input.shape[3]
    corners = (read_pixels(input, pixel, inside, image) for pixel, inside in find_cell(y, x, size))
    return blend(corners, y, x, size)


def find_cell(
    y: Tensor, x: Tensor, size: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:  # indices and booleans like y
    """Yields the four corners of the cell that each position lies in: which pixel, and whether it is on the map."""
    H, W = size
    y0, x0 = (v.detach().floor() for v in _park_outside(y, x, size))
    for row in (y0, y0 + 1):
        for column in (x0, x0 + 1):
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            yield row.long().clamp(0, H - 1) * W + column.long().clamp(0, W - 1), inside


def read_pixels(
    input: Tensor, pixel: Tensor, inside: Tensor, image: Tensor | None = None
) -> Tensor:  # [N, G, C / G, P]
    """Reads pixels of a map, 0 for those outside, in the dtype of sums."""
    C, H, W = input.shape[1:]
    N, G, P = pixel.shape
    if image is None:
        maps = input.flatten(2).unflatten(1, (G, C // G))
    else:
        maps, pixel = input.transpose(0, 1).reshape(1, 1, C, -1), pixel + image * (H * W)
    corner = maps.gather(3, pixel.unsqueeze(2).expand(N, G, C // G, P)).to(sum_dtype(input))
    # where(), not a product: a pixel outside counts as 0 even if the one that is read in its place is infinite.
    return torch.where(inside.unsqueeze(2), corner, 0)


def blend(corners: Iterable[Tensor], y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:  # [N, G, C / G, P]
    """Interpolates between the four corners of a cell; its derivative by y and x is that of a sample."""
    # Propagates NaN: sin(NaN) and all its derivatives are NaN. Elsewhere this adds sin(0) = 0.
    sampled = torch.where(y.isnan() | x.isnan(), y + x, 0).sin().unsqueeze(2)
    y, x = _park_outside(y, x, size)
    dy, dx = y - y.detach().floor(), x - x.detach().floor()
    factors = (wy * wx for wy in (1 - dy, dy) for wx in (1 - dx, dx))
    for factor, corner in zip(factors, corners, strict=True):
        sampled = sampled + factor.unsqueeze(2) * corner
    return sampled


def _park_outside(y: Tensor, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Moves far and NaN positions to -2, where no corner of the cell lies on the map.

    Neither converts to an index, and infinity minus infinity would be NaN.
    """
    near = (y >= -1) & (y < size[0]) & (x >= -1) & (x < size[1])
    return torch.where(near, y, -2), torch.where(near, x, -2)


def scatter(corners: Iterable[Tensor], cells: Iterable[tuple[Tensor, Tensor]], maps: Tensor) -> None:
    """Adds the gradients of a cell's corners to those of the pixels; maps are [N, C, H, W]."""
    flat = maps.view(*maps.shape[:2], -1)  # view() raises where reshape() would copy: the sums would be lost
    for corner, (pixel, inside) in zip(corners, cells, strict=True):
        G, channels = corner.shape[1:3]
        flat.unflatten(1, (G, channels)).scatter_add_(
            3, pixel.unsqueeze(2).expand_as(corner), torch.where(inside.unsqueeze(2), corner, 0)
        )


def sum_dtype(features: Tensor) -> torch.dtype:
    """The dtype of sums and positions: float32 for bfloat16, float16 and float32, float64 for float64."""
    return torch.promote_types(features.dtype, torch.float32)


# Bounded memory: forward and backward of a reference take a part of the output at a time.


def split_range(count: int, step: int) -> Iterator[slice]:
    """Cuts a range into slices of one length; the last may be shorter."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@contextmanager
def accumulate(gradient: Tensor | None, dtype: torch.dtype) -> Iterator[Tensor | None]:
    """Gives zeros to add to within a ``with`` block: the gradient itself where it has that dtype, else a copy of it.

    A copy is written to the gradient at the end of the block.
    """
    if gradient is None or gradient.dtype == dtype:
        yield None if gradient is None else gradient.zero_()
        return
    sums = torch.zeros_like(gradient, dtype=dtype)
    yield sums
    gradient.copy_(sums)
