"""Deformable RoI pooling in plain PyTorch: the definition, the oracle, and the fallback of every other device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from .reference import bilinear

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUDGET = 2**23
"""So many numbers are sampled at a time, but a box at least; several times as many are held in all."""

LARGEST_BIN = 2.0**30
"""In pixels: of a larger bin, an infinite one too, no sample is taken, and its average is 0."""


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
    """Modulated deformable RoI pooling, y(k) = dm_k / n_k * sum_j x(p_kj + dp_k) (arXiv 1811.11168, section 3.2).

    Boxes are taken a few at a time, so that memory stays bounded. bfloat16 and float16 are computed in float32 and
    rounded once, at the end.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    features, boxes = input.to(dtype), boxes.detach().to(dtype)
    K, (ph, pw) = boxes.shape[0], output_size
    _assert_images(boxes[:, 0], input.shape[0])
    image = boxes[:, 0].long()
    start = boxes[:, [2, 1]] * spatial_scale - 0.5  # (y, x), as every pair below
    size = boxes[:, [4, 3]] * spatial_scale - 0.5 - start
    infinite, size = size.isinf(), torch.where(size.isinf(), 0, size)
    bins = size / torch.tensor((ph, pw), dtype=dtype, device=input.device)
    samples = _samples(bins, sampling_ratio).masked_fill(infinite, 0)

    corner = start[:, :, None, None].expand(K, 2, ph, pw)  # of each bin
    if offset is not None:
        corner = corner + gamma * size[:, :, None, None] * offset.to(dtype).flip(1)
    down, across = (torch.arange(n, device=input.device).to(dtype) for n in (ph, pw))
    top = corner[:, 0] + down[:, None] * bins[:, 0, None, None]
    left = corner[:, 1] + across * bins[:, 1, None, None]

    pooled, order = [], []
    for chosen, most in _chunks(samples, features, ph * pw, sampling_ratio):
        index = torch.tensor(chosen, dtype=torch.long, device=input.device)
        rows = _along(top[index], bins[index, 0], samples[index, 0], most[0])
        columns = _along(left[index], bins[index, 1], samples[index, 1], most[1])
        average = _average(features, image[index], rows, columns, samples[index].prod(1))
        pooled.append(average if mask is None else average * mask[index].to(dtype))
        order += chosen
    back = torch.tensor(sorted(range(K), key=order.__getitem__), dtype=torch.long, device=input.device)
    return torch.cat(pooled)[back].to(input.dtype)


def _samples(bins: Tensor, sampling_ratio: int) -> Tensor:  # both [K, 2]
    """How many samples a bin has along each axis, in the dtype of positions."""
    if sampling_ratio > 0:
        return torch.full_like(bins, sampling_ratio)
    count = bins.ceil().clamp(min=0)
    count = count.masked_fill(count > LARGEST_BIN, 0)
    return torch.where(bins.isnan(), 1, count)  # which is at NaN


def _along(
    corner: Tensor,  # [K, ph, pw]: where the bin starts along an axis
    size: Tensor,  # [K], of a bin
    samples: Tensor,  # [K], of a bin
    most: int,
) -> tuple[Tensor, Tensor]:  # [K, ph, pw, most], [K, 1, 1, most]
    """Positions of a bin's samples along one axis, and which of them there are.

    Of a bin that has more, only `most` are looked at, from the first that can be on the map.
    """
    corner, size, samples = corner.unsqueeze(3), size[:, None, None, None], samples[:, None, None, None]
    before = ((-2 - corner.detach()) * samples / size).floor().nan_to_num(0, 0, 0).clamp(min=0)
    index = torch.arange(most, device=corner.device).to(corner.dtype)
    index = index + torch.where(samples > most, before, 0)
    return corner + (index + 0.5) * size / samples.clamp(min=1), index < samples


def _moved(position: Tensor, length: int) -> Tensor:
    """A sample up to one pixel outside the map, moved to its border: there its derivative is 0.

    One further out is put to -2, where nothing is sampled.
    """
    last = length - 1
    moved = torch.where(position < 0, 0, torch.where(position >= last, last, position))
    return torch.where((position >= -1) & (position <= length), moved, -2)


def _average(
    features: Tensor,  # [N, C, H, W]
    image: Tensor,  # [K]
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    count: Tensor,  # [K]
) -> Tensor:  # [K, C, ph, pw]
    K, ph, pw, down = rows[0].shape
    across, C = columns[0].shape[3], features.shape[1]
    shape = (K, ph, pw, down, across)
    y, x = rows[0].unsqueeze(4).expand(shape), columns[0].unsqueeze(3).expand(shape)
    exists = (rows[1].unsqueeze(4) & columns[1].unsqueeze(3)).expand(shape)
    on = image[:, None, None, None, None].expand(shape).reshape(-1)
    nan = y.isnan() | x.isnan()  # what bilinear() makes NaN, and its derivative by both
    y, x = (
        torch.where(exists, torch.where(nan, v, _moved(v, length)), -2).reshape(1, 1, -1)
        for v, length in zip((y, x), features.shape[2:], strict=True)
    )
    total = bilinear(features, y, x, on).reshape(C, *shape).sum((4, 5))
    return (total / count.clamp(min=1)[:, None, None]).transpose(0, 1)


def _chunks(
    samples: Tensor,  # [K, 2]
    features: Tensor,  # [N, C, H, W]
    bins: int,
    sampling_ratio: int,
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Boxes to be taken together, alike in size, with the most samples that a bin of theirs has on the map."""
    C, H, W = features.shape[1:]

    def on_map(count: float, length: int) -> int:
        # Adaptive samples are more than half a pixel apart where there are two or more.
        return max(1, int(count if sampling_ratio > 0 else min(count, 2 * length + 8)))

    counts = [(on_map(down, H), on_map(across, W)) for down, across in _numbers(samples, sampling_ratio)]
    order = sorted(range(len(counts)), key=counts.__getitem__)
    chunk: list[int] = []
    most = (1, 1)
    for k in order:
        larger = max(most[0], counts[k][0]), max(most[1], counts[k][1])
        if chunk and (len(chunk) + 1) * larger[0] * larger[1] * bins * C > BUDGET:
            yield chunk, most
            chunk, larger = [], counts[k]
        chunk.append(k)
        most = larger
    yield chunk, most  # an empty one too, of which an empty output with gradients is made


def _numbers(samples: Tensor, sampling_ratio: int) -> list[tuple[float, float]]:
    """The samples of each box as Python's numbers; of what vmap hides, the most that any box has."""
    K = samples.shape[0]
    if sampling_ratio > 0 or samples.is_meta:
        return [(max(1, sampling_ratio),) * 2] * K
    if _traced(samples):
        raise RuntimeError(
            "sampling_ratio: 0 takes as many samples as the boxes are large, which no graph of this can hold; "
            "give a number of samples, or leave this call out of the graph"
        )
    plain = _unwrapped(samples)
    if plain.shape == samples.shape:
        return [(down, across) for down, across in plain.tolist()]
    return [(float(plain.max()),) * 2] * K if plain.numel() else []


def traceable(*arguments: Any) -> bool:
    """Whether the steps of a call can be recorded: not where they depend on the boxes, whose values no graph knows."""
    input, *_, sampling_ratio, _ = arguments
    return sampling_ratio > 0 or not _traced(input)


def _traced(tensor: Tensor) -> bool:
    return detect_fake_mode((tensor,)) is not None


def _assert_images(index: Tensor, images: int) -> None:
    plain = _unwrapped(index)
    if not plain.is_meta:
        torch._assert_async(
            ((plain >= 0) & (plain < images)).all(), f"boxes: expected indices of images from 0 to {images - 1}"
        )


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that torch.func's transforms have wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
