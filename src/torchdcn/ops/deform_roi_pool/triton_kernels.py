# ruff: noqa: N803  # constants of a compiled kernel are written in capitals, as everywhere in Triton
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (the arguments of a kernel are not Python values)
"""Triton kernels of modulated deformable RoI pooling: averages of samples, of which each bin takes its own.

``y[k, b, c] = mask[k, b] / n * sum over the bin's n samples``. A bin's samples are a lattice, down times across, and
all bins of a box have as many; a program takes bins of one box, so its loops run as long as they must and no longer.

Features lie channels-last, as rows of channels: input [N H W, C]. What belongs to boxes is dense: boxes [K, 5],
offset [K, 2, ph pw] as (x, y), mask [K, ph pw]. ACC is the type of sums and positions: float32, and float64 for
float64. INDEX is int32, or int64 where a tensor needs it.

The number of a box's samples, and which of them are on the map, must not depend on how a compiler rounds. So products
that go into positions are rounded one by one, as torch rounds them, and quotients exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from ..triton.bilinear import blend, locate, on_map, parts, read, scatter, slopes_x, slopes_y
from . import reference

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LARGEST_BIN = tl.constexpr(reference.LARGEST_BIN)
LARGEST_LOOP = tl.constexpr(2.0**31 - 128)


class Pooling(NamedTuple):
    """The numbers of a layer. Triton compiles a kernel anew for what they are divisible by."""

    C: int
    ph: int
    pw: int
    bins: int  # of a box, ph pw
    # Strides, in elements, of the output, which is dense in either layout; of a box it has C bins elements.
    channel: int
    bin: int


class Maps(NamedTuple):
    """The numbers of the images at hand; one compiled kernel serves them all."""

    H: int
    W: int
    first: int  # the image that the input starts with; boxes of images before it are left alone,
    images: int  # as are those behind so many


@triton.jit
def product(a, b):
    """A product that is fused with no sum."""
    if INTERPRETED:
        return a * b
    else:  # noqa: RET505  # Triton compiles one of the two
        return libdevice.mul_rn(a, b)


@triton.jit
def quotient(a, b, ACC: tl.constexpr):
    """The nearest number there is; Triton's own `/` of float32 may be two away from it."""
    if tl.float64 == ACC:
        return a / b
    else:  # noqa: RET505  # likewise
        return tl.div_rn(a, b)


@triton.jit
def quotient_by(a, b, inverse):
    """The quotient again, by the nearest number to 1 / b: no branch, and no call of a function within a loop.

    What is left over of a is exact, and a second correction makes the nearest number of a neighbour (Markstein 1990).
    """
    if INTERPRETED:  # which fuses nothing
        return a / b
    else:  # noqa: RET505  # likewise
        estimate = a * inverse
        estimate = tl.fma(tl.fma(-estimate, b, a), inverse, estimate)
        found = tl.fma(tl.fma(-estimate, b, a), inverse, estimate)
        return tl.where(tl.abs(a) < float("inf"), found, a)


@triton.jit
def side(low, high, bins, spatial_scale, sampling_ratio, ACC: tl.constexpr):
    """A box along one axis: where it starts, its size, that of a bin, and how many samples a bin has."""
    start = product(low, spatial_scale) - 0.5
    size = product(high, spatial_scale) - 0.5 - start
    infinite = tl.abs(size) == float("inf")
    size = tl.where(infinite, 0, size)
    step = quotient(size, tl.cast(bins, ACC), ACC)
    count = tl.where((step > 0) & (step <= LARGEST_BIN), tl.ceil(step), 0)
    count = tl.where(step != step, 1, count)
    count = tl.where(sampling_ratio > 0, tl.cast(sampling_ratio, ACC), count)
    return start, size, step, tl.where(infinite, 0, count)


@triton.jit
def window(corner, step, count, length, live, nan):  # [M], and one value for all
    """The first sample of each bin that can be on the map, [M], and how many the bin with most has from there on.

    A NaN bin has one: it makes the bin NaN.
    """
    near, far = (-2 - corner) * count / step, (length + 1 - corner) * count / step
    first, last = tl.floor(tl.minimum(near, far)), tl.ceil(tl.maximum(near, far))
    first = tl.where((first > 0) & (nan == 0), tl.minimum(first, count), 0)
    last = tl.where(last < count, last, count)  # of bins without size near and far may be NaN
    most = tl.where(live, tl.where(nan, tl.minimum(count, 1), tl.maximum(last - first, 0)), 0)
    return first, tl.minimum(tl.max(most, 0), LARGEST_LOOP).to(tl.int32)


@triton.jit
def along(axis, i, length, ACC: tl.constexpr):
    """Where the i-th sample is along an axis, and the derivative of that by where its bin is; [M] each.

    Up to one pixel outside, a sample is moved to the map's border, where it stays when its bin moves. Further out it
    is put to where nothing is sampled.
    """
    corner, step, count, inverse, first, _ = axis
    index = first + i
    position = corner + quotient_by((index + 0.5) * step, tl.zeros(index.shape, ACC) + count, inverse)
    border = tl.cast(length - 1, ACC)
    moved = tl.where(position < 0, 0, tl.where(position >= border, border, position))
    counts = (position >= -1) & (position <= length) & (index < count)
    moves = ((position >= 0) & (position < border)).to(ACC)
    return tl.where(counts, moved, tl.where(position != position, position, -2)), moves


@triton.jit
def bins_of(
    k, b, live, boxes, offset, spatial_scale, sampling_ratio, gamma, layer, maps, ACC: tl.constexpr, INDEX: tl.constexpr
):
    """Each axis as (corner, step, count, 1 / count, first, most), then the pixels that an offset of 1 moves by."""
    row = boxes + tl.cast(k, INDEX) * 5
    scale, gamma = tl.full((), spatial_scale, ACC), tl.full((), gamma, ACC)
    x1, y1 = tl.load(row + 1).to(ACC), tl.load(row + 2).to(ACC)
    x2, y2 = tl.load(row + 3).to(ACC), tl.load(row + 4).to(ACC)
    top, height, step_y, down = side(y1, y2, layer.ph, scale, sampling_ratio, ACC)
    left, width, step_x, across = side(x1, x2, layer.pw, scale, sampling_ratio, ACC)

    i, j = (b // layer.pw).to(ACC), (b % layer.pw).to(ACC)
    tops, lefts = top + product(i, step_y), left + product(j, step_x)
    if offset is not None:
        at = tl.cast(k, INDEX) * (2 * layer.bins) + b
        dx, dy = tl.load(offset + at, live, 0).to(ACC), tl.load(offset + at + layer.bins, live, 0).to(ACC)
        # In the reference's order, for sums round as well.
        tops = top + product(product(gamma, height), dy) + product(i, step_y)
        lefts = left + product(product(gamma, width), dx) + product(j, step_x)
    nan = (tops != tops) | (lefts != lefts)  # so are those of a box whose size is NaN
    first_y, most_y = window(tops, step_y, down, maps.H, live, nan)
    first_x, most_x = window(lefts, step_x, across, maps.W, live, nan)
    one = tl.full((), 1, ACC)
    rows = tops, step_y, down, quotient(one, tl.maximum(down, 1), ACC), first_y, most_y
    columns = lefts, step_x, across, quotient(one, tl.maximum(across, 1), ACC), first_x, most_x
    return rows, columns, gamma * height, gamma * width


@triton.jit
def factor_of(k, b, live, mask, layer, ACC: tl.constexpr, INDEX: tl.constexpr):
    """What bins are weighed by, [M]."""
    if mask is None:
        factor = tl.full(b.shape, 1, ACC)
    else:
        factor = tl.load(mask + tl.cast(k, INDEX) * layer.bins + b, live, 0).to(ACC)
    return factor


@triton.jit
def image_of(k, boxes, maps, INDEX: tl.constexpr):
    """Where a box's image is in the input, -1 if it isn't there."""
    image = tl.load(boxes + tl.cast(k, INDEX) * 5).to(tl.float64)
    there = (image >= maps.first) & (image < maps.first + maps.images)
    return tl.where(there, image - maps.first, -1).to(INDEX)


@triton.jit(do_not_specialize=["maps", "sampling_ratio"])
def pool(
    input, boxes, offset, mask, output, layer, maps,
    spatial_scale: tl.float64, sampling_ratio, gamma: tl.float64,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_M bins of one box, BLOCK_C channels of them."""
    blocks, tiles = tl.cdiv(layer.C, BLOCK_C), tl.cdiv(layer.bins, BLOCK_M)
    program = tl.program_id(0)
    channels = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    b = program // blocks % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    k = program // blocks // tiles
    live, exists = b < layer.bins, channels < layer.C
    image = image_of(k, boxes, maps, INDEX)
    if image < 0:
        return

    rows, columns, reach_y, reach_x = bins_of(  # noqa: RUF059  # Triton knows no slices of tuples
        k, b, live, boxes, offset, spatial_scale, sampling_ratio, gamma, layer, maps, ACC, INDEX
    )
    one = tl.full(b.shape, 1, ACC)
    sums = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for i in range(rows[5]):
        y = along(rows, i, maps.H, ACC)[0]
        for j in range(columns[5]):
            x = along(columns, j, maps.W, ACC)[0]
            y0, x0, ly, lx = locate(y, x, maps.H, maps.W, INDEX)
            pixel, inside = (image * maps.H + y0) * maps.W + x0, on_map(y0, x0, live, maps.H, maps.W)
            sums += blend(input, pixel, maps.W, inside, parts(ly, lx, one), channels, exists, layer.C, ACC)

    factor = rows[3] * columns[3] * factor_of(k, b, live, mask, layer, ACC, INDEX)
    at = tl.cast(k, INDEX) * (layer.C * layer.bins) + b[:, None] * layer.bin + channels[None, :] * layer.channel
    tl.store(output + at, (sums * factor[:, None]).to(output.dtype.element_ty), live[:, None] & exists[None, :])


@triton.jit(do_not_specialize=["maps", "sampling_ratio"])
def bin_gradients(
    grad_output,  # laid out as output
    input, boxes, offset, mask,
    grad_offset, grad_mask,  # laid out as offset and mask; or None
    layer, maps,
    spatial_scale: tl.float64, sampling_ratio, gamma: tl.float64,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK_M bins of one box, with all channels: it alone writes the gradients of their places."""
    tiles = tl.cdiv(layer.bins, BLOCK_M)
    program = tl.program_id(0)
    b, k = program % tiles * BLOCK_M + tl.arange(0, BLOCK_M), program // tiles
    live = b < layer.bins
    image = image_of(k, boxes, maps, INDEX)
    if image < 0:
        return

    rows, columns, reach_y, reach_x = bins_of(
        k, b, live, boxes, offset, spatial_scale, sampling_ratio, gamma, layer, maps, ACC, INDEX
    )
    one = tl.full(b.shape, 1, ACC)
    by_y, by_x, by_factor = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
    for block in range(0, layer.C, BLOCK_C):
        channels = block + tl.arange(0, BLOCK_C)
        exists = channels < layer.C
        # Sums of the samples and of their derivatives: to multiply by the gradient once is enough.
        value, slope_y = tl.zeros((BLOCK_M, BLOCK_C), ACC), tl.zeros((BLOCK_M, BLOCK_C), ACC)
        slope_x = tl.zeros((BLOCK_M, BLOCK_C), ACC)
        for i in range(rows[5]):
            y, moves_y = along(rows, i, maps.H, ACC)
            for j in range(columns[5]):
                x, moves_x = along(columns, j, maps.W, ACC)
                y0, x0, ly, lx = locate(y, x, maps.H, maps.W, INDEX)
                pixel, inside = (image * maps.H + y0) * maps.W + x0, on_map(y0, x0, live, maps.H, maps.W)
                part, down_y, down_x = parts(ly, lx, one), slopes_y(lx), slopes_x(ly)
                for q in tl.static_range(4):
                    corner = pixel + (q // 2) * maps.W + q % 2
                    v = read(input, corner, inside[q], channels, exists, layer.C, ACC)
                    value += part[q][:, None] * v
                    slope_y += (moves_y * down_y[q])[:, None] * v
                    slope_x += (moves_x * down_x[q])[:, None] * v
        at = tl.cast(k, INDEX) * (layer.C * layer.bins) + b[:, None] * layer.bin + channels[None, :] * layer.channel
        g = tl.load(grad_output + at, live[:, None] & exists[None, :], 0).to(ACC)
        by_y, by_x = by_y + tl.sum(g * slope_y, 1), by_x + tl.sum(g * slope_x, 1)
        by_factor += tl.sum(g * value, 1)

    share = rows[3] * columns[3]  # of a sample in the average
    if grad_offset is not None:
        factor = share * factor_of(k, b, live, mask, layer, ACC, INDEX)
        at = tl.cast(k, INDEX) * (2 * layer.bins) + b
        kind = grad_offset.dtype.element_ty
        tl.store(grad_offset + at, (factor * reach_x * by_x).to(kind), live)
        tl.store(grad_offset + at + layer.bins, (factor * reach_y * by_y).to(kind), live)
    if grad_mask is not None:
        at = tl.cast(k, INDEX) * layer.bins + b
        tl.store(grad_mask + at, (share * by_factor).to(grad_mask.dtype.element_ty), live)


@triton.jit(do_not_specialize=["maps", "sampling_ratio"])
def input_gradient(
    grad_output,  # laid out as output
    boxes, offset, mask,
    grad_input,  # [N H W, C] in ACC, zeros before
    fixed,  # the same as int64, where sums must not depend on the order; or None
    scale,  # [1] float64, steps of `fixed` per unit
    layer, maps,
    spatial_scale: tl.float64, sampling_ratio, gamma: tl.float64,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program spreads BLOCK_C channels of BLOCK_M bins of one box over the pixels that the bins blended.

    It adds to them atomically, for samples of other programs fall on the same pixels.
    """
    blocks, tiles = tl.cdiv(layer.C, BLOCK_C), tl.cdiv(layer.bins, BLOCK_M)
    program = tl.program_id(0)
    channels = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    b = program // blocks % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    k = program // blocks // tiles
    live, exists = b < layer.bins, channels < layer.C
    image = image_of(k, boxes, maps, INDEX)
    if image < 0:
        return

    rows, columns, reach_y, reach_x = bins_of(  # noqa: RUF059  # Triton knows no slices of tuples
        k, b, live, boxes, offset, spatial_scale, sampling_ratio, gamma, layer, maps, ACC, INDEX
    )
    one = tl.full(b.shape, 1, ACC)
    steps = tl.load(scale) if fixed is not None else None
    factor = rows[3] * columns[3] * factor_of(k, b, live, mask, layer, ACC, INDEX)
    at = tl.cast(k, INDEX) * (layer.C * layer.bins) + b[:, None] * layer.bin + channels[None, :] * layer.channel
    g = factor[:, None] * tl.load(grad_output + at, live[:, None] & exists[None, :], 0).to(ACC)
    for i in range(rows[5]):
        y = along(rows, i, maps.H, ACC)[0]
        for j in range(columns[5]):
            x = along(columns, j, maps.W, ACC)[0]
            y0, x0, ly, lx = locate(y, x, maps.H, maps.W, INDEX)
            pixel, inside = (image * maps.H + y0) * maps.W + x0, on_map(y0, x0, live, maps.H, maps.W)
            part = parts(ly, lx, one)
            for q in tl.static_range(4):
                corner = pixel + (q // 2) * maps.W + q % 2
                scatter(grad_input, fixed, steps, part[q][:, None] * g, corner, inside[q], channels, exists, layer.C)
