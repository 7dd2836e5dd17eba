# ruff: noqa: N803  # constants of a compiled kernel are written in capitals, as everywhere in Triton
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# (the arguments of a kernel are not Python values)
"""Triton kernels of modulated deformable convolution: an implicit GEMM whose columns are sampled where they are used.

``y[m, o] = sum over taps k and channels c of column[m, k, c] w[o, k, c]`` for the M = N Ho Wo output positions m. The
columns, samples times mask, would take K times the input's memory and are never stored: a program samples a tile of
them and multiplies it at once.

All features lie channels-last, as rows of channels: input [N H W, C], output [M, Co], weight [Co, K, C / groups]. A
*segment* is a run of gcd(C / G, C / groups) channels: those of one lie in one deformable group, so they are sampled
at the same positions, and in one group, so they feed the same outputs.

ACC is the type of sums and positions: float32, and float64 for float64. INDEX is int32, or int64 where a tensor or a
position needs it. PRECISION is how float32 is multiplied: "tf32" or "ieee".
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..triton.bilinear import blend, locate, on_map, parts, read, scatter, slopes_x, slopes_y

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Layer(NamedTuple):
    """The numbers of a layer. Triton compiles a kernel anew for what they are divisible by."""

    C: int
    Co: int
    K: int  # taps, kh kw
    kw: int
    stride_y: int
    stride_x: int
    padding_y: int
    padding_x: int
    dilation_y: int
    dilation_x: int
    groups: int
    deform_groups: int
    inputs: int  # of a group
    outputs: int  # of a group
    moved: int  # channels of a deformable group
    segment: int


class Size(NamedTuple):
    """The numbers of a map, which may change with every image; one compiled kernel serves them all."""

    M: int  # output positions, N Ho Wo
    H: int
    W: int
    Ho: int
    Wo: int
    # Strides, in elements, of offset and mask, which are dense in either layout; a position is oy Wo + ox.
    offset_image: int
    offset_channel: int
    offset_position: int
    mask_image: int
    mask_channel: int
    mask_position: int


@triton.jit
def multiply_add(a, b, sums, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """Sums + a b, on tensor cores where the dtype has any."""
    if INTERPRETED:  # Triton's interpreter would multiply the bits of a bfloat16 as an integer
        a, b = a.to(ACC), b.to(ACC)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def cell(
    m,  # [M] output positions
    valid,  # [M] whether there is such a position
    tap,
    deform_group,
    offset,
    mask,
    layer,
    size,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Where a tap samples the input: its cell's first pixel, the corners on the map, (ly, lx), and mask; [M] each."""
    ox, oy = m % size.Wo, m // size.Wo % size.Ho
    n, position = m // size.Wo // size.Ho, oy * size.Wo + ox
    channel = tl.cast(deform_group * layer.K + tap, INDEX)

    at = n * size.offset_image + position * size.offset_position + 2 * channel * size.offset_channel
    dy = tl.load(offset + at, valid, 0).to(ACC)
    dx = tl.load(offset + at + size.offset_channel, valid, 0).to(ACC)
    y = oy * layer.stride_y - layer.padding_y + tl.cast(tap // layer.kw, INDEX) * layer.dilation_y
    x = ox * layer.stride_x - layer.padding_x + tl.cast(tap % layer.kw, INDEX) * layer.dilation_x
    y0, x0, ly, lx = locate(y.to(ACC) + dy, x.to(ACC) + dx, size.H, size.W, INDEX)

    if mask is None:
        factor = tl.full(dy.shape, 1, ACC)
    else:
        at = n * size.mask_image + position * size.mask_position + channel * size.mask_channel
        factor = tl.load(mask + at, valid, 0).to(ACC)
    inside = on_map(y0, x0, valid, size.H, size.W)
    return (n * size.H + y0) * size.W + x0, inside, ly, lx, factor


@triton.jit(do_not_specialize=["size"])
def forward(
    input, offset, mask, weight, output, layer, size,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program computes BLOCK_M positions of BLOCK_O outputs of one group.

    A tap's samples are planned once for all channels of a segment. Programs of one tile of positions run side by
    side, so that they find the tile's pixels in L2.
    """
    outputs, inputs = layer.outputs, layer.inputs
    tiles = tl.cdiv(outputs, BLOCK_O)
    program = tl.program_id(0)
    m = tl.cast(program // (tiles * layer.groups), INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = program % tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    group = program // tiles % layer.groups
    valid, is_output = m < size.M, o < outputs
    rows = tl.cast(group * outputs + o, INDEX) * (layer.K * inputs)  # of the weight

    sums = tl.zeros((BLOCK_M, BLOCK_O), ACC)
    for start in range(0, inputs, layer.segment):
        deform_group = (group * inputs + start) // layer.moved
        for tap in range(layer.K):
            pixel, inside, ly, lx, factor = cell(m, valid, tap, deform_group, offset, mask, layer, size, ACC, INDEX)
            part = parts(ly, lx, factor)
            for block in range(0, layer.segment, BLOCK_C):
                c = block + tl.arange(0, BLOCK_C)
                exists = c < layer.segment
                channels = group * inputs + start + c
                column = blend(input, pixel, size.W, inside, part, channels, exists, layer.C, ACC)
                at = rows[None, :] + (tap * inputs + start + c)[:, None]
                w = tl.load(weight + at, exists[:, None] & is_output[None, :], 0)
                sums = multiply_add(column.to(w.dtype), w, sums, PRECISION, ACC)

    at = m[:, None] * layer.Co + (group * outputs + o)[None, :]
    tl.store(output + at, sums.to(output.dtype.element_ty), valid[:, None] & is_output[None, :])


@triton.jit(do_not_specialize=["size"])
def data_gradients(
    grad_output, input, offset, mask, weight,
    grad_input,  # [N H W, C] in ACC, zeros before; or None
    fixed,  # the same as int64, where sums must not depend on the order; or None
    scale,  # [1] float64, steps of `fixed` per unit
    grad_offset, grad_mask,  # laid out as offset and mask; or None
    layer, size,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program takes one tap of one deformable group at BLOCK_M positions, with all of the group's channels.

    So it alone writes the gradients of its offsets and masks. The gradient of the input it adds to atomically, for
    samples of other programs fall on the same pixels.
    """
    program = tl.program_id(0)
    tap = program % layer.K
    deform_group = program // layer.K % layer.deform_groups
    m = tl.cast(program // (layer.K * layer.deform_groups), INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = m < size.M
    pixel, inside, ly, lx, factor = cell(m, valid, tap, deform_group, offset, mask, layer, size, ACC, INDEX)
    part, slope_y, slope_x = parts(ly, lx, factor), slopes_y(lx), slopes_x(ly)
    share = parts(ly, lx, tl.full(ly.shape, 1, ACC))
    steps = tl.load(scale) if fixed is not None else None

    outputs, inputs, moved = layer.outputs, layer.inputs, layer.moved
    by_y, by_x, by_factor = tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC), tl.zeros((BLOCK_M,), ACC)
    for start in range(0, moved, layer.segment):
        first = deform_group * moved + start  # channel of the segment
        group = first // inputs
        for block in range(0, layer.segment, BLOCK_C):
            c = block + tl.arange(0, BLOCK_C)
            exists = c < layer.segment
            channels = first + c

            by_column = tl.zeros((BLOCK_M, BLOCK_C), ACC)  # the gradient of the columns
            for o_block in range(0, outputs, BLOCK_O):
                o = o_block + tl.arange(0, BLOCK_O)
                is_output = o < outputs
                at = m[:, None] * layer.Co + (group * outputs + o)[None, :]
                g = tl.load(grad_output + at, valid[:, None] & is_output[None, :], 0)
                rows = tl.cast(group * outputs + o, INDEX) * (layer.K * inputs)
                at = rows[:, None] + (tap * inputs + first - group * inputs + c)[None, :]
                w = tl.load(weight + at, is_output[:, None] & exists[None, :], 0)
                by_column = multiply_add(g, w, by_column, PRECISION, ACC)

            for i in tl.static_range(4):
                corner = pixel + (i // 2) * size.W + i % 2
                if grad_offset is not None or grad_mask is not None:
                    value = read(input, corner, inside[i], channels, exists, layer.C, ACC)
                    product = tl.sum(by_column * value, 1)
                    by_y += slope_y[i] * product
                    by_x += slope_x[i] * product
                    by_factor += share[i] * product
                if grad_input is not None:
                    value = part[i][:, None] * by_column
                    scatter(grad_input, fixed, steps, value, corner, inside[i], channels, exists, layer.C)

    n, position = m // size.Wo // size.Ho, m % (tl.cast(size.Wo, INDEX) * size.Ho)
    channel = tl.cast(deform_group * layer.K + tap, INDEX)
    if grad_offset is not None:
        at = n * size.offset_image + position * size.offset_position + 2 * channel * size.offset_channel
        tl.store(grad_offset + at, factor * by_y, valid)
        tl.store(grad_offset + at + size.offset_channel, factor * by_x, valid)
    if grad_mask is not None:
        at = n * size.mask_image + position * size.mask_position + channel * size.mask_channel
        tl.store(grad_mask + at, by_factor, valid)


@triton.jit(do_not_specialize=["size", "splits"])
def weight_gradient(
    grad_output, input, offset, mask,
    partial,  # [SPLITS, Co, K, C / groups] in ACC
    splits,
    layer, size,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program sums BLOCK_O outputs by BLOCK_C channels of one tap over its share of all positions.

    The shares are summed afterwards, in order: no atomics, the same bits every time.
    """
    outputs, inputs = layer.outputs, layer.inputs
    o_tiles, c_tiles = tl.cdiv(outputs, BLOCK_O), tl.cdiv(layer.segment, BLOCK_C)
    program = tl.program_id(0)
    o = program % o_tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    program = program // o_tiles
    c = program % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // c_tiles
    first = program % (layer.C // layer.segment) * layer.segment  # channel of the segment
    program = program // (layer.C // layer.segment)
    tap, split = program % layer.K, program // layer.K
    group, deform_group = first // inputs, first // layer.moved
    is_output, exists = o < outputs, c < layer.segment
    channels = first + c

    blocks = tl.cdiv(tl.cdiv(size.M, splits), BLOCK_M)
    sums = tl.zeros((BLOCK_O, BLOCK_C), ACC)
    for block in range(split * blocks, (split + 1) * blocks):
        m = tl.cast(block, INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
        valid = m < size.M
        pixel, inside, ly, lx, factor = cell(m, valid, tap, deform_group, offset, mask, layer, size, ACC, INDEX)
        part = parts(ly, lx, factor)
        column = blend(input, pixel, size.W, inside, part, channels, exists, layer.C, ACC)
        at = m[:, None] * layer.Co + (group * outputs + o)[None, :]
        g = tl.load(grad_output + at, valid[:, None] & is_output[None, :], 0)
        sums = multiply_add(tl.trans(g), column.to(g.dtype), sums, PRECISION, ACC)

    rows = (tl.cast(split, INDEX) * layer.Co + group * outputs + o) * (layer.K * inputs)
    at = rows[:, None] + (tap * inputs + first - group * inputs + c)[None, :]
    tl.store(partial + at, sums, is_output[:, None] & exists[None, :])
