"""FLOPs of deformable RoI pooling, by the rules of `flop_counting`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .._torch_private import is_traced
from ..flop_counting import FLOPS_OF_SAMPLE
from .reference import count_samples

if TYPE_CHECKING:
    from types import SimpleNamespace

USUAL_SAMPLES = 4
"""Assumes 2 x 2 samples per bin where their number follows from boxes without values, such as fake tensors."""


def forward(call: SimpleNamespace, _: Any) -> int:
    """The samples."""
    return FLOPS_OF_SAMPLE * _count(call)


def backward(call: SimpleNamespace, _: Any) -> int:
    """The gradients that are asked for: a sample each for input and mask, its slopes along two axes for the offset."""
    by_input, by_offset, by_mask = call.output_mask
    times: int = by_input + 2 * (by_offset and call.offset is not None) + (by_mask and call.mask is not None)
    return times * FLOPS_OF_SAMPLE * _count(call)


def _count(call: SimpleNamespace) -> int:
    """The number of sampled values: channels by bins by samples of a bin."""
    boxes, ratio = call.boxes, call.sampling_ratio
    samples: int = boxes.shape[0] * prod(call.output_size)
    if ratio > 0:
        samples *= ratio * ratio
    elif boxes.device.type == "meta" or is_traced(boxes):
        samples *= USUAL_SAMPLES
    else:
        samples = count_samples(boxes, call.output_size, call.spatial_scale)
    return call.input.shape[1] * samples  # type: ignore[no-any-return]
