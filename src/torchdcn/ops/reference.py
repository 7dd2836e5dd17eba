"""Deformable convolution in plain PyTorch: the definition, the oracle, and the fallback of every other device.

``deform_conv2d`` is the definition: it runs on any device and in any floating dtype, and is differentiable as often as
one likes, for which it needs memory for all columns. The kernels in ``csrc`` compute the same numbers without ever
storing them. ``forward`` and ``backward`` have those kernels' signatures: the definition, tile by tile, within a stated
number of bytes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BUDGET = 2**27
"""Bytes that ``forward`` and ``backward`` hold at a time for samples and what is computed of them."""

FORWARD_COST = (6, 28)
BACKWARD_COST = (17, 36)
"""Numbers held for each sample: so many for each channel, and so many besides for its position."""


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


# Sampling


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
    corners = (read(input, pixel, inside, image) for pixel, inside in cell(y, x, size))
    return blend(corners, y, x, size)


def cell(y: Tensor, x: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:  # indices and booleans like y
    """The four corners of the cell each position lies in: which pixel, and whether it is on the map."""
    H, W = size
    y0, x0 = (v.detach().floor() for v in _parked(y, x, size))
    for row in (y0, y0 + 1):
        for column in (x0, x0 + 1):
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            yield row.long().clamp(0, H - 1) * W + column.long().clamp(0, W - 1), inside


def read(input: Tensor, pixel: Tensor, inside: Tensor, image: Tensor | None = None) -> Tensor:  # [N, G, C / G, P]
    """The pixels of a map, 0 for those outside, in sums' dtype."""
    C, H, W = input.shape[1:]
    N, G, P = pixel.shape
    if image is None:
        maps = input.flatten(2).unflatten(1, (G, C // G))
    else:
        maps, pixel = input.transpose(0, 1).reshape(1, 1, C, -1), pixel + image * (H * W)
    corner = maps.gather(3, pixel.unsqueeze(2).expand(N, G, C // G, P)).to(sum_dtype(input))
    # where(), not a product: what lies outside counts as 0 even if the pixel read instead is infinite.
    return torch.where(inside.unsqueeze(2), corner, 0)


def blend(corners: Iterable[Tensor], y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:  # [N, G, C / G, P]
    """Interpolates between the four corners of a cell, which the derivative by a position differentiates."""
    # What a NaN must give is added by way of a sine, every derivative of which is NaN too.
    sampled = torch.where(y.isnan() | x.isnan(), y + x, 0).sin().unsqueeze(2)
    y, x = _parked(y, x, size)
    dy, dx = y - y.detach().floor(), x - x.detach().floor()
    factors = (wy * wx for wy in (1 - dy, dy) for wx in (1 - dx, dx))
    for factor, corner in zip(factors, corners, strict=True):
        sampled = sampled + factor.unsqueeze(2) * corner
    return sampled


def _parked(y: Tensor, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Far and NaN positions put at -2, where no corner of the cell lies on the map.

    Neither converts to an index, and infinity minus infinity would be NaN.
    """
    near = (y >= -1) & (y < size[0]) & (x >= -1) & (x < size[1])
    return torch.where(near, y, -2), torch.where(near, x, -2)


def scatter(corners: Iterable[Tensor], cells: Iterable[tuple[Tensor, Tensor]], maps: Tensor) -> None:
    """Adds gradients of a cell's corners to those of the pixels; maps are [N, C, H, W]."""
    flat = maps.view(*maps.shape[:2], -1)  # which can't be a copy
    for corner, (pixel, inside) in zip(corners, cells, strict=True):
        G, channels = corner.shape[1:3]
        flat.unflatten(1, (G, channels)).scatter_add_(
            3, pixel.unsqueeze(2).expand_as(corner), torch.where(inside.unsqueeze(2), corner, 0)
        )


def sum_dtype(input: Tensor) -> torch.dtype:
    """What bfloat16 and float16 are computed in is float32; the others are computed in themselves."""
    return torch.promote_types(input.dtype, torch.float32)


# The definition


class Tile(NamedTuple):
    """A range of images, and a rectangle of their output."""

    images: slice
    rows: slice
    columns: slice

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor [N, channels, Ho, Wo]."""
        return tensor[self.images, :, self.rows, self.columns]


class Layer(NamedTuple):
    """The numbers of a layer."""

    kernel: tuple[int, int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    deform_groups: int

    def positions(self, offset: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:  # [N, G, K P]
        """Where the taps of some outputs sample; the offset is theirs, in sums' dtype."""
        N, _, Ho, Wo = offset.shape
        kh, kw = self.kernel
        shift = offset.reshape(N, self.deform_groups, kh, kw, 2, Ho, Wo)
        y = shift.select(4, 0) + self._taps(rows, 0, offset).reshape(kh, 1, Ho, 1)
        x = shift.select(4, 1) + self._taps(columns, 1, offset).reshape(1, kw, 1, Wo)
        return y.flatten(2), x.flatten(2)

    def _taps(self, outputs: slice, axis: int, like: Tensor) -> Tensor:
        """Where tap i of output o sits without an offset."""
        grid = torch.arange(outputs.start, outputs.stop, device=like.device) * self.stride[axis] - self.padding[axis]
        tap = torch.arange(self.kernel[axis], device=like.device)[:, None]
        return (grid + tap * self.dilation[axis]).to(like.dtype)

    def product(self, samples: Tensor, mask: Tensor | None, weight: Tensor, size: Sequence[int]) -> Tensor:
        """Samples [N, G, C / G, K P] times mask times weight, all in sums' dtype: outputs [N, Co, *size]."""
        N = samples.shape[0]
        if mask is not None:
            samples = samples * mask.reshape(N, self.deform_groups, 1, samples.shape[3])
        taps = weight.shape[1] * weight.shape[2] * weight.shape[3]  # of a group
        columns = samples.reshape(N, self.groups, taps, size[0] * size[1])
        kernels = weight.reshape(self.groups, weight.shape[0] // self.groups, taps)
        return torch.matmul(kernels, columns).reshape(N, weight.shape[0], *size)


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

    bfloat16 and float16 are computed in float32 and rounded once, at the end. Memory is not bounded here: all columns
    are held, C kh kw numbers for each output position, and several times as many where torch differentiates.
    """
    dtype = sum_dtype(input)
    kernel = weight.shape[2], weight.shape[3]
    layer = Layer(kernel, stride, padding, dilation, groups, deform_groups)
    Ho, Wo = output_size(input.shape[2:], kernel, stride, padding, dilation)
    samples = bilinear(input.to(dtype), *layer.positions(offset.to(dtype), slice(0, Ho), slice(0, Wo)))
    modulation = None if mask is None else mask.to(dtype)
    return layer.product(samples, modulation, weight.to(dtype), (Ho, Wo)).to(input.dtype)


# Tile by tile


def forward(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    output: Tensor,
) -> None:  # fmt: skip
    """Writes the convolution to output.

    Besides, it holds ``BUDGET`` bytes at most (more only where a single output position needs more), and the weight in
    float32 where that has 16 bits.
    """
    layer = Layer((weight.shape[2], weight.shape[3]), stride, padding, dilation, groups, deform_groups)
    dtype, kernels = sum_dtype(input), weight.to(sum_dtype(input))
    images, *steps = _steps(input, kernels, output, layer, FORWARD_COST)
    for batch in ranges(len(input), images):
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
    """Writes the gradients that aren't None, each tile's as torch differentiates the definition.

    Besides, it holds ``BUDGET`` bytes at most (more only where a single output position needs more), the sum of the
    weight's gradient, and where features have 16 bits the weight and one image's gradient in float32. The input's
    gradient is to be dense in either layout.
    """
    layer = Layer((weight.shape[2], weight.shape[3]), stride, padding, dilation, groups, deform_groups)
    dtype, kernels = sum_dtype(input), weight.to(sum_dtype(input))
    weight_sums = None if grad_weight is None else torch.zeros_like(kernels)
    gradients = {"corners": grad_input, "offset": grad_offset, "mask": grad_mask, "weight": grad_weight}
    wanted = [name for name, gradient in gradients.items() if gradient is not None]
    images, *steps = _steps(input, kernels, grad_output, layer, BACKWARD_COST)
    for batch in ranges(len(input) if wanted else 0, images):
        with summed(None if grad_input is None else grad_input[batch], dtype) as sums:
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
    known: dict[str, Any],  # offset and mask of the tile, and the weight, in sums' dtype
    wanted: Sequence[str],  # of these, and "corners" for the input
    sums: Tensor | None,  # to which the input's gradient is added
) -> dict[str, Tensor]:
    """Gradients by offset, mask and weight.

    That by the input is taken at the pixels that were read: torch would fill a map with zeros for each reading.
    """
    size = input.shape[2], input.shape[3]
    cells = list(cell(*layer.positions(known["offset"], tile.rows, tile.columns), size))
    known = known | {"corners": [read(input, pixel, inside) for pixel, inside in cells]}

    def value(varied: dict[str, Any]) -> Tensor:
        all_of_them = known | varied
        y, x = layer.positions(all_of_them["offset"], tile.rows, tile.columns)
        samples = blend(all_of_them["corners"], y, x, size)
        return layer.product(samples, all_of_them["mask"], all_of_them["weight"], cotangent.shape[2:])

    pullback = torch.func.vjp(value, {name: known[name] for name in wanted})[1]
    (found,) = pullback(cotangent)
    if sums is not None:
        scatter(found.pop("corners"), cells, sums)
    return found  # type: ignore[no-any-return]


def _steps(input: Tensor, weight: Tensor, output: Tensor, layer: Layer, cost: tuple[int, int]) -> tuple[int, int, int]:
    """How many images, rows and columns of the output are taken at a time."""
    C, Co, (Ho, Wo) = input.shape[1], output.shape[1], output.shape[2:]
    taps = layer.kernel[0] * layer.kernel[1]
    position = weight.element_size() * (taps * (cost[0] * C + cost[1] * layer.deform_groups) + 3 * Co)
    image = Ho * Wo * position + 2 * weight.element_size() * (input[:1].numel() + weight.numel())
    positions = max(1, BUDGET // position)
    return max(1, BUDGET // image), min(Ho, max(1, positions // Wo)), min(Wo, positions)


def _tiles(batch: slice, output: Tensor, steps: Sequence[int]) -> Iterator[Tile]:
    for rows in ranges(output.shape[2], steps[0]):
        for columns in ranges(output.shape[3], steps[1]):
            yield Tile(batch, rows, columns)


def ranges(count: int, step: int) -> Iterator[slice]:
    """Cuts count into steps, the last of which may be shorter."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@contextmanager
def summed(gradient: Tensor | None, dtype: torch.dtype) -> Iterator[Tensor | None]:
    """Zeros to be added to within a ``with`` block: the gradient itself if it has their dtype, else written to it."""
    if gradient is None or gradient.dtype == dtype:
        yield None if gradient is None else gradient.zero_()
        return
    sums = torch.zeros_like(gradient, dtype=dtype)
    yield sums
    gradient.copy_(sums)
