"""Deformable convolution in plain PyTorch: the definition, the oracle, and the fallback of every other device.

``deform_conv2d`` is the definition. It runs on any device and in any floating dtype and can be differentiated any
number of times, for which it holds all samples in memory. ``forward`` and ``backward`` have the signatures of the
kernels in ``csrc``: they compute the same numbers tile by tile, within a stated number of bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import sampling
from ..sampling import accumulate, bilinear, blend, find_cell, read_pixels, scatter, split_range, sum_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

FORWARD_COST, BACKWARD_COST = (6, 28), (17, 36)
"""Numbers held for each sample: so many for each of its channels, and so many for its position."""


# The definition


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2 G K, Ho, Wo], (dy, dx) per tap
    mask: Tensor | None,  # [N, G K, Ho, Wo]
    weight: Tensor,  # [Co, C / groups, kh, kw], K = kh kw
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    deform_groups: int,
) -> Tensor:  # [N, Co, Ho, Wo]
    """Modulated deformable convolution, y(p) = sum_k w_k x(p + p_k + dp_k) dm_k (arXiv 1811.11168, equation 1).

    bfloat16 and float16 are computed in float32 and rounded once, at the end. Memory is not bounded here: all samples
    are held, C kh kw numbers for each output position, and several times as many where torch differentiates.
    """
    (N, _, Ho, Wo), (Co, inputs, kh, kw), G = offset.shape, weight.shape, deform_groups
    dtype, device = sum_dtype(input), input.device

    # p + p_k, of a tap without an offset: a row for each tap and row of outputs, a column likewise.
    row, column = (
        torch.arange(n, device=device) * s - p + torch.arange(k, device=device)[:, None] * d
        for n, k, s, p, d in zip((Ho, Wo), (kh, kw), stride, padding, dilation, strict=True)
    )
    # p + p_k + dp_k
    dp = offset.to(dtype).reshape(N, G, kh, kw, 2, Ho, Wo)
    y = dp.select(4, 0) + row.to(dtype).reshape(kh, 1, Ho, 1)
    x = dp.select(4, 1) + column.to(dtype).reshape(1, kw, 1, Wo)

    samples = bilinear(input.to(dtype), y.flatten(2), x.flatten(2))  # [N, G, C / G, K Ho Wo]
    if mask is not None:
        samples = samples * mask.to(dtype).reshape(N, G, 1, kh * kw * Ho * Wo)
    samples = samples.reshape(N, groups, inputs * kh * kw, Ho * Wo)
    w = weight.to(dtype).reshape(groups, Co // groups, inputs * kh * kw)
    return torch.matmul(w, samples).reshape(N, Co, Ho, Wo).to(input.dtype)


def output_size(
    size: Sequence[int],  # (H, W) of the input
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


# The same, tile by tile


class Tile(NamedTuple):
    """A range of images, and a rectangle of their output."""

    images: slice
    rows: slice
    columns: slice

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor [N, channels, Ho, Wo]."""
        return tensor[self.images, :, self.rows, self.columns]


class Layer(NamedTuple):
    """The numbers of a layer, and the definition's two halves for a part of its output."""

    kernel: tuple[int, int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    deform_groups: int

    def positions(self, offset: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:  # [N, G, K P]
        """Where the taps of these outputs sample: p + p_k + dp_k; the offset is theirs, in the dtype of sums."""
        N, _, Ho, Wo = offset.shape
        kh, kw = self.kernel
        shift = offset.reshape(N, self.deform_groups, kh, kw, 2, Ho, Wo)
        y = shift.select(4, 0) + self._taps(rows, 0, offset).reshape(kh, 1, Ho, 1)
        x = shift.select(4, 1) + self._taps(columns, 1, offset).reshape(1, kw, 1, Wo)
        return y.flatten(2), x.flatten(2)

    def _taps(self, outputs: slice, axis: int, like: Tensor) -> Tensor:
        """Where each tap of each output is along an axis without an offset: p + p_k."""
        grid = torch.arange(outputs.start, outputs.stop, device=like.device) * self.stride[axis] - self.padding[axis]
        tap = torch.arange(self.kernel[axis], device=like.device)[:, None]
        return (grid + tap * self.dilation[axis]).to(like.dtype)

    def product(self, samples: Tensor, mask: Tensor | None, weight: Tensor, size: Sequence[int]) -> Tensor:
        """Outputs [N, Co, *size]: samples [N, G, C / G, K P] times mask times weight, all in the dtype of sums."""
        N = samples.shape[0]
        if mask is not None:
            samples = samples * mask.reshape(N, self.deform_groups, 1, samples.shape[3])
        taps = weight.shape[1] * weight.shape[2] * weight.shape[3]  # of a group
        columns = samples.reshape(N, self.groups, taps, size[0] * size[1])
        kernels = weight.reshape(self.groups, weight.shape[0] // self.groups, taps)
        return torch.matmul(kernels, columns).reshape(N, weight.shape[0], *size)


def forward(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    output: Tensor,
) -> None:  # fmt: skip
    """Writes the convolution to output.

    It holds at most ``sampling.BUDGET`` bytes of its own (more only where a single output position needs more), and a
    16-bit weight in float32.
    """
    layer = Layer((weight.shape[2], weight.shape[3]), stride, padding, dilation, groups, deform_groups)
    dtype, kernels = sum_dtype(input), weight.to(sum_dtype(input))
    images, *steps = _tile_size(input, kernels, output, layer, FORWARD_COST)
    for batch in split_range(len(input), images):
        for tile in _tiles(batch, output, steps):
            samples = bilinear(input[batch], *layer.positions(tile.of(offset).to(dtype), tile.rows, tile.columns))
            modulation = None if mask is None else tile.of(mask).to(dtype)
            written = tile.of(output)
            written.copy_(layer.product(samples, modulation, kernels, written.shape[2:]))


def backward(
    grad_output: Tensor,
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    grad_input: Tensor | None, grad_offset: Tensor | None, grad_mask: Tensor | None, grad_weight: Tensor | None,
) -> None:  # fmt: skip
    """Writes the gradients that aren't None; torch differentiates the definition, a tile at a time.

    It holds at most ``sampling.BUDGET`` bytes of its own (more only where a single output position needs more), the
    sum of the weight's gradient, and for 16-bit features the weight and one image's gradient in float32. The input's
    gradient must be dense, in either layout.
    """
    layer = Layer((weight.shape[2], weight.shape[3]), stride, padding, dilation, groups, deform_groups)
    dtype, kernels = sum_dtype(input), weight.to(sum_dtype(input))
    weight_sums = None if grad_weight is None else torch.zeros_like(kernels)
    gradients = {"corners": grad_input, "offset": grad_offset, "mask": grad_mask, "weight": grad_weight}
    wanted = [name for name, gradient in gradients.items() if gradient is not None]
    images, *steps = _tile_size(input, kernels, grad_output, layer, BACKWARD_COST)
    for batch in split_range(len(input) if wanted else 0, images):
        with accumulate(None if grad_input is None else grad_input[batch], dtype) as sums:
            for tile in _tiles(batch, grad_output, steps):
                known: dict[str, Any] = {"weight": kernels, "offset": tile.of(offset).to(dtype)}
                known["mask"] = None if mask is None else tile.of(mask).to(dtype)
                found = _tile_gradients(layer, tile, tile.of(grad_output).to(dtype), input[batch], known, wanted, sums)
                for name, gradient in (("offset", grad_offset), ("mask", grad_mask)):
                    if gradient is not None:
                        tile.of(gradient).copy_(found[name])
                if weight_sums is not None:
                    weight_sums += found["weight"]
    if grad_weight is not None and weight_sums is not None:
        grad_weight.copy_(weight_sums)


def _tile_gradients(
    layer: Layer,
    tile: Tile,
    cotangent: Tensor,
    input: Tensor,  # the tile's images
    known: dict[str, Any],  # offset and mask of the tile, and the weight, in the dtype of sums
    wanted: Sequence[str],  # names of these whose gradients to take, and "corners" for the input's
    sums: Tensor | None,  # the input's gradient, to be added to
) -> dict[str, Tensor]:
    """Computes the gradients by offset, mask and weight, and adds the input's to sums.

    The input's gradient is taken at the pixels that were read: torch would fill a map with zeros for each reading.
    """
    size = input.shape[2], input.shape[3]
    cells = list(find_cell(*layer.positions(known["offset"], tile.rows, tile.columns), size))
    known = known | {"corners": [read_pixels(input, pixel, inside) for pixel, inside in cells]}

    def tile_output(varied: dict[str, Any]) -> Tensor:
        values = known | varied
        y, x = layer.positions(values["offset"], tile.rows, tile.columns)
        samples = blend(values["corners"], y, x, size)
        return layer.product(samples, values["mask"], values["weight"], cotangent.shape[2:])

    pullback = torch.func.vjp(tile_output, {name: known[name] for name in wanted})[1]
    (found,) = pullback(cotangent)
    if sums is not None:
        scatter(found.pop("corners"), cells, sums)
    return found  # type: ignore[no-any-return]


def _tile_size(
    input: Tensor, weight: Tensor, output: Tensor, layer: Layer, cost: tuple[int, int]
) -> tuple[int, int, int]:
    """Images, rows and columns of the output that fit the budget."""
    C, Co, (Ho, Wo) = input.shape[1], output.shape[1], output.shape[2:]
    taps = layer.kernel[0] * layer.kernel[1]
    position = weight.element_size() * (taps * (cost[0] * C + cost[1] * layer.deform_groups) + 3 * Co)
    image = Ho * Wo * position + 2 * weight.element_size() * (input[:1].numel() + weight.numel())
    positions = max(1, sampling.BUDGET // position)
    return max(1, sampling.BUDGET // image), min(Ho, max(1, positions // Wo)), min(Wo, positions)


def _tiles(batch: slice, output: Tensor, steps: Sequence[int]) -> Iterator[Tile]:
    for rows in split_range(output.shape[2], steps[0]):
        for columns in split_range(output.shape[3], steps[1]):
            yield Tile(batch, rows, columns)
