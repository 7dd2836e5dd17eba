"""Formulas for ``torch.utils.flop_counter.FlopCounterMode``, which counts an operator without one as nothing.

As for torch's own operators, matrix products count, a multiplication and an addition as two. Here bilinear sampling
counts too, 8 for each value: four pixels by four weights, into which the mask is folded. Where the reference runs, its
products are counted as torch counts them, and its sampling, made of elementwise steps, is not.
"""

from __future__ import annotations

from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch._guards import detect_fake_mode
from torch.utils.flop_counter import register_flop_formula

from .reference_roi import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BLEND = 8
"""Of one sampled value."""

USUAL_SAMPLES = 4
"""Of a bin, 2 x 2, where their number hangs on boxes that have no values, as in a compiler."""


def deform_conv2d(call: SimpleNamespace, output: Tensor) -> int:
    """The product of a dense convolution of that shape, and the samples that it multiplies."""
    product, samples = _convolution(call, output)
    return product + BLEND * samples


def deform_conv2d_backward(call: SimpleNamespace, _: Any) -> int:
    """That of the gradients which are asked for.

    The weight's is a product with the samples, taken again. Those of input, offset and mask share a product, the
    gradient of the samples; it is spread over the input's pixels, multiplied by the samples' slopes along two axes, and
    by the samples.
    """
    product, samples = _convolution(call, call.grad_output)
    by_input, by_offset, by_mask, by_weight = call.output_mask
    by_mask = by_mask and call.mask is not None
    products: int = (by_input or by_offset or by_mask) + by_weight
    times: int = by_input + 2 * by_offset + by_mask + by_weight
    return products * product + times * BLEND * samples


def _convolution(call: SimpleNamespace, output: Tensor) -> tuple[int, int]:
    """The FLOPs of the product, and how many values are sampled."""
    positions, weight = output.shape[0] * prod(output.shape[2:]), call.weight.shape
    return 2 * positions * prod(weight), positions * call.input.shape[1] * prod(weight[2:])


def deform_roi_pool(call: SimpleNamespace, _: Any) -> int:
    """The samples."""
    return BLEND * _pooled(call)


def deform_roi_pool_backward(call: SimpleNamespace, _: Any) -> int:
    """That of the gradients which are asked for; see the convolution."""
    by_input, by_offset, by_mask = call.output_mask
    times: int = by_input + 2 * (by_offset and call.offset is not None) + (by_mask and call.mask is not None)
    return times * BLEND * _pooled(call)


def _pooled(call: SimpleNamespace) -> int:
    """How many values are sampled: channels by bins by samples of a bin."""
    boxes, ratio = call.boxes, call.sampling_ratio
    of_boxes: int = boxes.shape[0] * prod(call.output_size)
    if ratio > 0:
        of_boxes *= ratio * ratio
    elif boxes.device.type == "meta" or detect_fake_mode((boxes,)) is not None:
        of_boxes *= USUAL_SAMPLES
    else:
        of_boxes = samples_of(boxes, call.output_size, call.spatial_scale)
    return call.input.shape[1] * of_boxes  # type: ignore[no-any-return]


def _register(formula: Callable[[SimpleNamespace, Any], int]) -> None:
    operator = getattr(torch.ops.torchdcn, formula.__name__)
    names = [argument.name for argument in operator.default._schema.arguments]

    def count(*arguments: Any, out_val: Any = None, **named: Any) -> int:
        return formula(SimpleNamespace(**dict(zip(names, arguments, strict=False)), **named), out_val)

    register_flop_formula(operator, get_raw=True)(count)


def register_formulas() -> None:
    """Tells torch's counter the formulas."""
    for formula in (deform_conv2d, deform_conv2d_backward, deform_roi_pool, deform_roi_pool_backward):
        _register(formula)
