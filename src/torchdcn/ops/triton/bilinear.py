# ruff: noqa: N803  # constants of a compiled kernel are written in capitals, as everywhere in Triton
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (the arguments of a kernel are not Python values)
"""Sampling in Triton: which four pixels a position blends, how much of each, how they are read and added to.

The definition is ``sampling.bilinear``. A position belongs to the cell that ``floor`` picks; pixels off the map count
as zero. A position further than one pixel outside reads nothing. A NaN coordinate gives NaN weights, so the sample is
NaN.

Shapes: [M] is one value per position of a tile, [M, C] its channels. Features are rows of C channels, one row per
pixel. The four corners of a cell come in the order (y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(
    y,  # [M] in pixels of the map
    x,  # [M]
    H,
    W,
    INDEX: tl.constexpr,
):
    """Finds the cell: its upper left pixel (y0, x0), and the position in it (ly, lx), 0 <= l < 1; [M] each."""
    near = (y >= -1) & (y < H) & (x >= -1) & (x < W)
    # Far and NaN positions convert to no index: they move to -2, where no corner of the cell is on the map.
    y_near, x_near = tl.where(near, y, -2), tl.where(near, x, -2)
    y0, x0 = tl.floor(y_near), tl.floor(x_near)
    nan = tl.where((y != y) | (x != x), y + x, 0)
    return y0.to(INDEX), x0.to(INDEX), y_near - y0 + nan, x_near - x0 + nan


@triton.jit
def on_map(y0, x0, valid, H, W):  # [M] each
    """Which corners of a cell are pixels of the map; none of a position that isn't valid."""
    top, bottom = valid & (y0 >= 0), valid & (y0 >= -1) & (y0 < H - 1)
    left, right = x0 >= 0, (x0 >= -1) & (x0 < W - 1)
    return top & left, top & right, bottom & left, bottom & right


@triton.jit
def parts(ly, lx, factor):  # [M] each
    """The weight of each corner in a position's blend, times the position's factor (its mask)."""
    hy, hx = 1 - ly, 1 - lx
    return _part(hy * hx, factor), _part(hy * lx, factor), _part(ly * hx, factor), _part(ly * lx, factor)


@triton.jit
def _part(weight, factor):
    return tl.where(weight == 0, 0, weight * factor)  # 0 * inf is NaN: a corner of weight 0 counts as 0 under any mask


@triton.jit
def slopes_y(lx):  # [M]
    """The derivatives by y of the corners' weights, without the factor."""
    return lx - 1, -lx, 1 - lx, lx


@triton.jit
def slopes_x(ly):  # [M]
    """The derivatives by x of the corners' weights, without the factor."""
    return ly - 1, 1 - ly, -ly, ly


@triton.jit
def read(features, pixel, inside, channels, exists, C, ACC: tl.constexpr):
    """One corner's channels as [M, C], in the accumulator's type; zero where there is no pixel or no channel."""
    at = pixel[:, None] * C + channels[None, :]
    return tl.load(features + at, inside[:, None] & exists[None, :], 0).to(ACC)


@triton.jit
def blend(features, pixel, W, inside, part, channels, exists, C, ACC: tl.constexpr):
    """The samples' channels, [M, C]: a tile of columns."""
    column = part[0][:, None] * read(features, pixel, inside[0], channels, exists, C, ACC)
    column += part[1][:, None] * read(features, pixel + 1, inside[1], channels, exists, C, ACC)
    column += part[2][:, None] * read(features, pixel + W, inside[2], channels, exists, C, ACC)
    column += part[3][:, None] * read(features, pixel + W + 1, inside[3], channels, exists, C, ACC)
    return tl.where(exists[None, :], column, 0)  # a NaN weight would make channels beyond the last one NaN


@triton.jit
def scatter(sums, fixed, scale, values, pixel, inside, channels, exists, C):
    """Adds [M, C] to one corner's row of sums, where other programs add as well.

    A sum of floats depends on the order of its terms, and the order of atomic additions on the moment. A sum of
    integers does not. So where `fixed` is given, 64-bit integers that count steps of 1 / scale, finite values go
    there, and only infinities and NaN, whose sum has no order either, go to the floats.
    """
    at = pixel[:, None] * C + channels[None, :]
    here = inside[:, None] & exists[None, :]
    if fixed is None:
        tl.atomic_add(sums + at, values, here, sem="relaxed")
    else:
        finite = tl.abs(values) < float("inf")
        steps = tl.where(finite, tl.floor(values.to(tl.float64) * scale + 0.5), 0).to(tl.int64)
        tl.atomic_add(fixed + at, steps, here, sem="relaxed")
        tl.atomic_add(sums + at, values, here & (finite == 0), sem="relaxed")
