"""FLOPs of deformable convolution, by the rules of `flop_counting`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ..flop_counting import FLOPS_OF_SAMPLE

if TYPE_CHECKING:
    from types import SimpleNamespace

    from torch import Tensor


def forward(call: SimpleNamespace, output: Tensor) -> int:
    """The product of a dense convolution of that shape, and the samples that it multiplies."""
    product, samples = _count(call, output)
    return product + FLOPS_OF_SAMPLE * samples


def backward(call: SimpleNamespace, _: Any) -> int:
    """The gradients that are asked for.

    The weight's is a product with the samples, taken again. Those of input, offset and mask share a product, the
    gradient of the samples; it is spread over the input's pixels, multiplied by the samples' slopes along two axes, and
    by the samples.
    """
    product, samples = _count(call, call.grad_output)
    by_input, by_offset, by_mask, by_weight = call.output_mask
    by_mask = by_mask and call.mask is not None
    products: int = (by_input or by_offset or by_mask) + by_weight
    times: int = by_input + 2 * by_offset + by_mask + by_weight
    return products * product + times * FLOPS_OF_SAMPLE * samples


def _count(call: SimpleNamespace, output: Tensor) -> tuple[int, int]:
    """The FLOPs of the product, and the number of sampled values."""
    positions, weight = output.shape[0] * prod(output.shape[2:]), call.weight.shape
    return 2 * positions * prod(weight), positions * call.input.shape[1] * prod(weight[2:])
