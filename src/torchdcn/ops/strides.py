"""How tensors lie in memory: what counts as channels-last, and the strides that kernels and fake tensors agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ._torch_private import transforms_active

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def layout(tensor: Tensor) -> torch.memory_format:
    """channels_last where neighbouring channels are nearer to each other in memory than neighbouring pixels.

    Slices of a channels-last tensor are channels_last too, and so are one channel of it and an image [H, W, C] seen as
    [1, C, H, W]. A single pixel of a single channel could be either, and is contiguous; so is what isn't 4-D.
    """
    if tensor.dim() != 4:
        return torch.contiguous_format
    _, C, H, W = tensor.shape
    _, channel, row, pixel = tensor.stride()
    if H > 1:
        pixel = min(row, pixel) if W > 1 else row
    elif W <= 1 and C <= 1:
        return torch.contiguous_format
    return torch.channels_last if 0 < channel * C <= pixel else torch.contiguous_format


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself if it has no gaps in its layout, else a copy; kernels read nothing else."""
    return tensor if tensor.is_contiguous() else tensor.contiguous(memory_format=layout(tensor))


def empty_in_layout(shape: Sequence[int], like: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A tensor without values, of another's dtype and device."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def with_fresh_strides(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The values in exactly the strides that a new tensor of this layout has, as fake tensors promise them."""
    if transforms_active():
        return tensor  # vmap hides a dimension, so there are no strides to compare
    strides: tuple[int, ...]
    if memory_format == torch.channels_last:
        _, C, H, W = tensor.shape
        strides = (C * H * W, 1, W * C, C)
    else:
        strides, step = (), 1
        for size in reversed(tensor.shape):
            strides, step = (step, *strides), step * size
    return tensor if tensor.stride() == strides else tensor.clone(memory_format=memory_format)
