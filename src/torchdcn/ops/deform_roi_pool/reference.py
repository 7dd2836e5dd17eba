"""Deformable RoI pooling in plain PyTorch: the definition, the oracle, and the fallback of every other device.

``pool_box`` is the definition, for one box. ``deform_roi_pool`` computes it for all boxes in any floating dtype, and
can be differentiated any number of times. ``forward`` and ``backward`` have the signatures of the kernels in ``csrc``:
they compute the same numbers piece by piece, within a stated number of bytes.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import sampling
from .._torch_private import assert_async, is_traced, without_transforms
from ..sampling import accumulate, bilinear, blend, find_cell, read_pixels, scatter, split_range, sum_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

FORWARD_COST, BACKWARD_COST = (6, 36), (14, 44)
"""Numbers held for each sample: so many for each of its channels, and so many for its position."""

LARGEST_BIN = 2.0**30
"""In pixels. A larger or infinite bin takes no sample, and its average is 0."""


# The definition


def pool_box(
    input: Tensor,  # [C, H, W], the box's image
    box: Sequence[float],  # x1, y1, x2, y2
    offset: Tensor | None,  # [2, ph, pw], (x, y)
    mask: Tensor | None,  # [1, ph, pw]
    output_size: Sequence[int],  # (ph, pw)
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:  # [C, ph, pw]
    """Pools one box, y(k) = dm_k / n_k * sum_j x(p_kj + dp_k) (arXiv 1811.11168, section 3.2), a bin at a time."""
    C, H, W = input.shape
    left, top, right, bottom = (edge * spatial_scale - 0.5 for edge in box)
    (ph, pw), height, width = output_size, bottom - top, right - left
    down, across = (
        sampling_ratio if sampling_ratio > 0 else max(0, math.ceil(size)) for size in (height / ph, width / pw)
    )

    output = input.new_zeros(C, ph, pw)
    for i, j in itertools.product(range(ph), range(pw)):
        dx, dy = (0, 0) if offset is None else (gamma * width * offset[0, i, j], gamma * height * offset[1, i, j])
        ys = top + dy + (i + (torch.arange(down, dtype=input.dtype) + 0.5) / max(down, 1)) * height / ph
        xs = left + dx + (j + (torch.arange(across, dtype=input.dtype) + 0.5) / max(across, 1)) * width / pw
        y, x = torch.cartesian_prod(_move_to_border(ys, H), _move_to_border(xs, W)).T
        samples = bilinear(input[None], y[None, None], x[None, None])  # [1, 1, C, n]
        factor = 1 if mask is None else mask[0, i, j]
        output[:, i, j] = factor * samples[0, 0].sum(1) / max(down * across, 1)
    return output


# The same for all boxes


class Boxes(NamedTuple):
    """Boxes on the map; of each pair, (y, x)."""

    image: Tensor  # [K]
    start: Tensor  # [K, 2]
    size: Tensor  # [K, 2]
    bins: Tensor  # [K, 2], the size of one
    samples: Tensor  # [K, 2], of a bin along each axis, in the dtype of positions

    def of(self, index: Tensor) -> Boxes:
        """The boxes of these indices."""
        return Boxes(*(field[index] for field in self))


class Piece(NamedTuple):
    """The bins of some boxes that are taken together."""

    rows: slice
    columns: slice
    most: tuple[int, int]  # samples of a bin along each axis


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    boxes: Tensor,  # [K, 5]: index of the image, x1, y1, x2, y2
    offset: Tensor | None,  # [K, 2, ph, pw], (x, y)
    mask: Tensor | None,  # [K, 1, ph, pw]
    output_size: Sequence[int],  # (ph, pw)
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:  # [K, C, ph, pw]
    """Pools all boxes, a few of like size at a time.

    bfloat16 and float16 are computed in float32 and rounded once, at the end. Memory is not bounded here: where torch
    differentiates, all samples are held.
    """
    dtype = sum_dtype(input)
    features, K, (ph, pw) = input.to(dtype), boxes.shape[0], output_size
    assert_images(boxes[:, 0], input.shape[0])
    on_map = _on_map(boxes, dtype, output_size, spatial_scale, sampling_ratio)
    pooled, order = [], []
    for chosen, most in _chunks(on_map.samples, features, ph * pw, sampling_ratio, FORWARD_COST):
        index = torch.tensor(chosen, dtype=torch.long, device=input.device)
        group, piece = on_map.of(index), Piece(slice(0, ph), slice(0, pw), most)
        shift = None if offset is None else offset[index].to(dtype)
        y, x = _positions(group, shift, piece, gamma, features)
        image = group.image[:, None].expand(-1, y.shape[2] // max(1, len(chosen))).reshape(-1)
        average = _average(bilinear(features, y, x, image), group, piece)
        pooled.append(average if mask is None else average * mask[index].to(dtype))
        order += chosen
    back = torch.tensor(sorted(range(K), key=order.__getitem__), dtype=torch.long, device=input.device)
    return torch.cat(pooled)[back].to(input.dtype)


def count_samples(boxes: Tensor, output_size: Sequence[int], spatial_scale: float) -> int:
    """Counts the samples of all bins of all boxes ``[K, 5]`` where their number follows from the bin's size."""
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    samples = _on_map(boxes, dtype, output_size, spatial_scale, sampling_ratio=0).samples
    return math.prod(output_size) * int(samples.double().prod(dim=1).sum())


def _on_map(
    boxes: Tensor, dtype: torch.dtype, output_size: Sequence[int], spatial_scale: float, sampling_ratio: int
) -> Boxes:
    boxes = boxes.detach().to(dtype)
    start = boxes[:, [2, 1]] * spatial_scale - 0.5
    size = boxes[:, [4, 3]] * spatial_scale - 0.5 - start
    infinite, size = size.isinf(), torch.where(size.isinf(), 0, size)
    bins = size / torch.tensor(tuple(output_size), dtype=dtype, device=boxes.device)
    samples = _samples(bins, sampling_ratio).masked_fill(infinite, 0)
    return Boxes(boxes[:, 0].long(), start, size, bins, samples)


def _samples(bins: Tensor, sampling_ratio: int) -> Tensor:  # both [K, 2]
    """How many samples a bin has along each axis, in the dtype of positions."""
    if sampling_ratio > 0:
        return torch.full_like(bins, sampling_ratio)
    count = bins.ceil().clamp(min=0)
    count = count.masked_fill(count > LARGEST_BIN, 0)
    return torch.where(bins.isnan(), 1, count)  # a bin of size NaN gets one sample, located at NaN


def _place_samples(
    corner: Tensor,  # [K, ph, pw]: where the bin starts along an axis
    size: Tensor,  # [K], of a bin
    samples: Tensor,  # [K], of a bin
    most: int,
) -> tuple[Tensor, Tensor]:  # [K, ph, pw, most], [K, 1, 1, most]
    """Places a bin's samples along one axis; the booleans say which of them the bin has.

    Of a bin with more than `most` samples these are looked at from the first that can be on the map.
    """
    corner, size, samples = corner.unsqueeze(3), size[:, None, None, None], samples[:, None, None, None]
    before = ((-2 - corner.detach()) * samples / size).floor().nan_to_num(0, 0, 0).clamp(min=0)
    index = torch.arange(most, device=corner.device).to(corner.dtype)
    index = index + torch.where(samples > most, before, 0)
    return corner + (index + 0.5) * size / samples.clamp(min=1), index < samples


def _move_to_border(position: Tensor, length: int) -> Tensor:
    """Moves a sample up to one pixel outside the map to its border, where its derivative is 0.

    A sample further out goes to -2, where nothing is sampled.
    """
    last = length - 1
    moved = torch.where(position < 0, 0, torch.where(position >= last, last, position))
    return torch.where((position >= -1) & (position <= length), moved, -2)


def _positions(
    boxes: Boxes,
    offset: Tensor | None,  # [K, 2, rows, columns], in the dtype of sums
    piece: Piece,
    gamma: float,
    features: Tensor,
) -> tuple[Tensor, Tensor]:  # [1, 1, K rows columns down across]
    """Where samples are taken. Those that a bin does not have and those off the map are at -2."""
    rows, columns, most = piece
    K = boxes.start.shape[0]
    corner = boxes.start[:, :, None, None].expand(K, 2, rows.stop - rows.start, columns.stop - columns.start)
    if offset is not None:
        corner = corner + gamma * boxes.size[:, :, None, None] * offset.flip(1)
    down, across = (torch.arange(s.start, s.stop, device=corner.device).to(corner.dtype) for s in (rows, columns))
    top = corner[:, 0] + down[:, None] * boxes.bins[:, 0, None, None]
    left = corner[:, 1] + across * boxes.bins[:, 1, None, None]
    y, is_row = _place_samples(top, boxes.bins[:, 0], boxes.samples[:, 0], most[0])
    x, is_column = _place_samples(left, boxes.bins[:, 1], boxes.samples[:, 1], most[1])
    shape = (*top.shape, *most)
    y, x = y.unsqueeze(4).expand(shape), x.unsqueeze(3).expand(shape)
    exists = (is_row.unsqueeze(4) & is_column.unsqueeze(3)).expand(shape)
    nan = y.isnan() | x.isnan()  # bilinear() makes these NaN, and their derivatives by y and x
    y, x = (
        torch.where(exists, torch.where(nan, v, _move_to_border(v, length)), -2).reshape(1, 1, -1)
        for v, length in zip((y, x), features.shape[2:], strict=True)
    )
    return y, x


def _average(samples: Tensor, boxes: Boxes, piece: Piece) -> Tensor:  # [1, 1, C, P] -> [K, C, rows, columns]
    rows, columns, most = piece
    shape = (boxes.samples.shape[0], rows.stop - rows.start, columns.stop - columns.start, *most)
    total = samples.reshape(samples.shape[2], *shape).sum((4, 5))
    return (total / boxes.samples.prod(1).clamp(min=1)[:, None, None]).transpose(0, 1)


def _chunks(
    samples: Tensor,  # [K, 2]
    features: Tensor,  # [N, C, H, W]
    bins: int,
    sampling_ratio: int,
    cost: tuple[int, int],
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Groups boxes of like size that fit the budget, with the most samples that a bin of theirs has on the map."""
    H, W = features.shape[2:]
    sample = _bytes(features, cost)

    def on_map(count: float, length: int) -> int:
        # Adaptive samples are more than half a pixel apart where there are two or more.
        return max(1, int(count if sampling_ratio > 0 else min(count, 2 * length + 8)))

    counts = [(on_map(down, H), on_map(across, W)) for down, across in _samples_of_boxes(samples, sampling_ratio)]
    order = sorted(range(len(counts)), key=counts.__getitem__)
    chunk: list[int] = []
    most = (1, 1)
    for k in order:
        larger = max(most[0], counts[k][0]), max(most[1], counts[k][1])
        if chunk and (len(chunk) + 1) * larger[0] * larger[1] * bins * sample > sampling.BUDGET:
            yield chunk, most
            chunk, larger = [], counts[k]
        chunk.append(k)
        most = larger
    yield chunk, most  # also an empty one: the output is then empty, but has a gradient


def _pieces(boxes: int, output_size: Sequence[int], most: tuple[int, int], sample: int) -> Iterator[Piece]:
    """Cuts the bins of some boxes to fit the budget: all of them, else a few rows, else a few bins of a row."""
    ph, pw = output_size
    bins = max(1, sampling.BUDGET // max(1, boxes * most[0] * most[1] * sample))
    for rows in split_range(ph, max(1, bins // pw)):
        for columns in split_range(pw, min(pw, bins)):
            yield Piece(rows, columns, most)


def _bytes(features: Tensor, cost: tuple[int, int]) -> int:
    """Bytes held for a sample."""
    return sum_dtype(features).itemsize * (cost[0] * features.shape[1] + cost[1])


def _samples_of_boxes(samples: Tensor, sampling_ratio: int) -> list[tuple[float, float]]:
    """The samples of each box as Python's numbers; under vmap the most that any box of any example has."""
    K = samples.shape[0]
    if sampling_ratio > 0 or samples.is_meta:
        return [(max(1, sampling_ratio),) * 2] * K
    if is_traced(samples):
        raise RuntimeError(
            "sampling_ratio: 0 takes as many samples as the boxes are large, which no graph of this can hold; "
            "give a number of samples, or leave this call out of the graph"
        )
    values = without_transforms(samples)
    if values.shape == samples.shape:
        return [(down, across) for down, across in values.tolist()]
    return [(float(values.max()),) * 2] * K if values.numel() else []


def traceable(*arguments: Any) -> bool:
    """Whether the steps of a call can be recorded: not where they depend on the boxes' values, which no graph knows."""
    input, *_, sampling_ratio, _ = arguments
    return sampling_ratio > 0 or not is_traced(input)


def assert_images(index: Tensor, images: int) -> None:
    """Raises where a box is of an image that isn't there; on a GPU later on, without waiting for it."""
    index = without_transforms(index)
    if not index.is_meta:
        assert_async(
            ((index >= 0) & (index < images)).all(), f"boxes: expected indices of images from 0 to {images - 1}"
        )


# Piece by piece


def forward(
    input: Tensor, boxes: Tensor, offset: Tensor | None, mask: Tensor | None,
    output_size: Sequence[int], spatial_scale: float, sampling_ratio: int, gamma: float,
    output: Tensor,
) -> None:  # fmt: skip
    """Writes the pooled bins to output.

    It holds at most ``sampling.BUDGET`` bytes of its own (more only where a single bin needs more), and a few numbers
    for each box.
    """
    dtype = sum_dtype(input)
    on_map = _on_map(boxes, dtype, output_size, spatial_scale, sampling_ratio)
    for image, members in enumerate(_boxes_by_image(boxes, input.shape[0])):
        features = input[image : image + 1]
        for index, piece in _portions(on_map, members, features, output_size, sampling_ratio, FORWARD_COST):
            group, factor = on_map.of(index), _part(mask, index, piece, dtype)
            y, x = _positions(group, _part(offset, index, piece, dtype), piece, gamma, features)
            average = _average(bilinear(features, y, x), group, piece)
            if factor is not None:
                average = average * factor
            output[index, :, piece.rows, piece.columns] = average.to(output.dtype)


def backward(
    grad_output: Tensor,
    input: Tensor, boxes: Tensor, offset: Tensor | None, mask: Tensor | None,
    output_size: Sequence[int], spatial_scale: float, sampling_ratio: int, gamma: float,
    grad_input: Tensor | None, grad_offset: Tensor | None, grad_mask: Tensor | None,
) -> None:  # fmt: skip
    """Writes the gradients that aren't None; torch differentiates a piece at a time.

    It holds at most ``sampling.BUDGET`` bytes of its own (more only where a single bin needs more), a few numbers for
    each box, and for 16-bit features one image's gradient in float32. The input's gradient must be dense, in either
    layout.
    """
    dtype = sum_dtype(input)
    on_map = _on_map(boxes, dtype, output_size, spatial_scale, sampling_ratio)
    gradients = {"corners": grad_input, "offset": grad_offset, "mask": grad_mask}
    wanted = [name for name, gradient in gradients.items() if gradient is not None]
    for image, members in enumerate(_boxes_by_image(boxes, input.shape[0]) if wanted else []):
        features = input[image : image + 1]
        with accumulate(None if grad_input is None else grad_input[image : image + 1], dtype) as sums:
            for index, piece in _portions(on_map, members, features, output_size, sampling_ratio, BACKWARD_COST):
                known = {"offset": _part(offset, index, piece, dtype), "mask": _part(mask, index, piece, dtype)}
                cotangent = grad_output[index, :, piece.rows, piece.columns].to(dtype)
                found = _piece_gradients(on_map.of(index), piece, gamma, cotangent, features, known, wanted, sums)
                for name, gradient in (("offset", grad_offset), ("mask", grad_mask)):
                    if gradient is not None:
                        gradient[index, :, piece.rows, piece.columns] = found[name].to(gradient.dtype)


def _piece_gradients(
    boxes: Boxes,
    piece: Piece,
    gamma: float,
    cotangent: Tensor,
    features: Tensor,  # of the boxes' image
    known: dict[str, Any],  # offset and mask of the piece, in the dtype of sums
    wanted: Sequence[str],  # names of these whose gradients to take, and "corners" for the input's
    sums: Tensor | None,  # the input's gradient, to be added to
) -> dict[str, Tensor]:
    """Computes the gradients by offset and mask, and adds the input's, taken at the pixels that were read, to sums."""
    size = features.shape[2], features.shape[3]
    cells = list(find_cell(*_positions(boxes, known["offset"], piece, gamma, features), size))
    known = known | {"corners": [read_pixels(features, pixel, inside) for pixel, inside in cells]}

    def piece_output(varied: dict[str, Any]) -> Tensor:
        values = known | varied
        y, x = _positions(boxes, values["offset"], piece, gamma, features)
        average = _average(blend(values["corners"], y, x, size), boxes, piece)
        return average if values["mask"] is None else average * values["mask"]

    pullback = torch.func.vjp(piece_output, {name: known[name] for name in wanted})[1]
    (found,) = pullback(cotangent)
    if sums is not None:
        scatter(found.pop("corners"), cells, sums)
    return found  # type: ignore[no-any-return]


def _portions(
    on_map: Boxes,
    members: list[int],
    features: Tensor,
    output_size: Sequence[int],
    sampling_ratio: int,
    cost: tuple[int, int],
) -> Iterator[tuple[Tensor, Piece]]:
    """Groups an image's boxes, by their indices, with the bins of theirs that are taken at a time."""
    if not members:
        return
    bins = output_size[0] * output_size[1]
    samples = on_map.samples[torch.tensor(members, device=features.device)]
    for chosen, most in _chunks(samples, features, bins, sampling_ratio, cost):
        index = torch.tensor([members[i] for i in chosen], device=features.device)
        for piece in _pieces(len(chosen), output_size, most, _bytes(features, cost)):
            yield index, piece


def _boxes_by_image(boxes: Tensor, images: int) -> list[list[int]]:
    """Lists the boxes of each image. On the meta device, where boxes have no values, all count for the first image."""
    found: list[list[int]] = [[] for _ in range(images)]
    for k, image in enumerate([0.0] * boxes.shape[0] if boxes.is_meta else boxes[:, 0].tolist()):
        if not 0 <= image < images:  # NaN too
            raise RuntimeError(f"boxes: expected indices of images from 0 to {images - 1}, got {image}")
        found[int(image)].append(k)
    return found


def _part(tensor: Tensor | None, index: Tensor, piece: Piece, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor[index, :, piece.rows, piece.columns].to(dtype)
