"""Modulated deformable convolution: the public function, its checks and its registration, in that order.

The definition is the first function of `reference`. `triton_kernels`, `triton_launch` and csrc compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .._torch_private import forward_mode_active, transforms_active
from ..backends import backend_for
from ..checks import LARGEST, as_pair, check_dtype, check_is_tensor, check_pair, check_tensor
from ..dispatch import KernelOperator
from ..flop_counting import count_flops
from ..tracing import record_call
from . import flops, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2 G K, Ho, Wo]
    weight: Tensor,  # [Co, C / groups, kh, kw]
    bias: Tensor | None = None,  # [Co]
    stride: int | tuple[int, int] = (1, 1),
    padding: int | tuple[int, int] = (0, 0),
    dilation: int | tuple[int, int] = (1, 1),
    mask: Tensor | None = None,  # [N, G K, Ho, Wo]
) -> Tensor:  # [N, Co, Ho, Wo]
    """Convolution whose every sample is moved by ``offset`` and weighed by ``mask``.

    ``y(p) = sum_k w_k x(p + p_k + dp_k) dm_k`` with bilinear sampling of a map that is zero outside: Deformable
    ConvNets v2, arXiv 1811.11168, equation 1; without a mask it is v1. The signature is torchvision's.

    The numbers of groups follow from the shapes: ``groups = C / weight.shape[1]`` and, with ``K = kh kw`` taps,
    ``G = offset.shape[1] / (2 K)`` deformable groups, each moving ``C / G`` neighbouring channels.

    Args:
        input: ``[N, C, H, W]``. A channels-last input gives a channels-last output and is not copied.
        offset: ``[N, 2 G K, Ho, Wo]`` in pixels of the input; per group, per tap in row-major order, ``(dy, dx)``.
        weight: ``[Co, C / groups, kh, kw]``.
        bias: ``[Co]`` or None.
        stride: Step between outputs, in input pixels, as an int or ``(vertical, horizontal)``.
        padding: Zeros around the input on each side, in the same form.
        dilation: Step between taps, in the same form.
        mask: ``[N, G K, Ho, Wo]``, one factor per group and tap, or None for all ones.

    Returns:
        ``[N, Co, Ho, Wo]`` in input's dtype. bfloat16 and float16 accumulate in float32.

    Offset and mask have input's dtype, or float32 beside bfloat16 and float16, and are used as they come: a position
    needs more digits than a feature, for bfloat16 counts an offset from 8 pixels on in steps of 1/16, from 64 on in
    steps of 1/2. Autocast follows the rule of torch's own convolution for input and weight and leaves these two alone.

    Raises:
        ValueError: A shape or number that does not fit; the message names the argument.
        TypeError: A dtype that does not fit, or something that is no tensor.
        RuntimeError: Tensors on different devices.

    Example:
        >>> import torch
        >>> from torchdcn.ops import deform_conv2d
        >>> x, weight = torch.rand(2, 16, 32, 48), torch.rand(24, 16, 3, 3)
        >>> offset, mask = torch.randn(2, 18, 32, 48), torch.rand(2, 9, 32, 48)
        >>> deform_conv2d(x, offset, weight, padding=1, mask=mask).shape
        torch.Size([2, 24, 32, 48])
    """
    recorded: Any = record_call(deform_conv2d, input, offset, weight, bias, stride, padding, dilation, mask)
    if recorded is not None:
        return recorded  # type: ignore[no-any-return]  # a proxy for a tensor
    check_is_tensor("input", input)
    check_is_tensor("offset", offset)
    check_is_tensor("weight", weight)
    if mask is not None:
        check_is_tensor("mask", mask)
    if bias is not None:
        bias = checked_bias(bias, input, weight)
    # The counts of groups are derived here and checked with everything else, by the operator.
    taps = max(1, weight.shape[2] * weight.shape[3]) if weight.dim() == 4 else 1
    groups = input.shape[1] // max(1, weight.shape[1]) if input.dim() == weight.dim() == 4 else 1
    deform_groups = offset.shape[1] // (2 * taps) if offset.dim() == 4 else 1
    output: Tensor = torch.ops.torchdcn.deform_conv2d.default(
        input, offset, mask, weight, as_pair(stride, "stride"), as_pair(padding, "padding"),
        as_pair(dilation, "dilation"), groups, deform_groups,
    )  # fmt: skip
    return output if bias is None else _add_bias(output, bias.to(output.dtype))


def _add_bias(output: Tensor, bias: Tensor) -> Tensor:
    """Adds the bias, in place where that is safe: it saves the output's size in memory.

    Under a transform or a trace something else may hold the output.
    """
    transformed = transforms_active() or forward_mode_active()
    if transformed or torch.compiler.is_compiling() or backend_for(output.device) != "cpp":
        return output + bias
    return output.add_(bias)


def checked_bias(bias: Tensor, input: Tensor, weight: Tensor) -> Tensor:  # [1, Co, 1, 1]
    """Checks a bias and returns it in the shape in which it is added to the output."""
    check_is_tensor("bias", bias)
    check_tensor("bias", bias, 1, input)
    if weight.dim() == 4 and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape [{weight.shape[0]}], got {list(bias.shape)}")
    if bias.dtype not in (input.dtype, weight.dtype):  # under autocast the two may differ
        raise TypeError(f"bias: expected weight's {weight.dtype}, got {bias.dtype}")
    return bias.reshape(1, -1, 1, 1)


def check_arguments(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    deform_groups: int,
) -> tuple[int, int, int, int]:  # the output's shape
    """Checks everything that a kernel relies on, once, before any of them runs."""
    check_tensor("input", input, 4, input)
    check_dtype("input", input, input)
    for name, tensor in (("offset", offset), ("mask", mask), ("weight", weight)):
        if tensor is not None:
            check_tensor(name, tensor, 4, input)
            check_dtype(name, tensor, input, position=name != "weight")
    check_pair("stride", stride, 1)
    check_pair("padding", padding, 0)
    check_pair("dilation", dilation, 1)

    N, C, H, W = input.shape
    Co, channels, kh, kw = weight.shape
    G, K = deform_groups, kh * kw
    if C < 1 or H < 1 or W < 1:  # not min(): of symbols it would compare each with each
        raise ValueError(f"input: only the batch may be empty, got shape {list(input.shape)}")
    if Co < 1 or channels < 1 or kh < 1 or kw < 1:
        raise ValueError(f"weight: no dimension may be empty, got shape {list(weight.shape)}")
    if any(type(n) is int and n > LARGEST for n in (H, W, kh, kw)):  # of a symbol it would become a guard
        raise ValueError(f"input: expected maps and kernels below 2^31, got {H} x {W} and {kh} x {kw}")
    if groups < 1 or channels * groups != C or Co % groups:
        raise ValueError(
            f"weight: expected [Co, C / groups, kh, kw] with groups dividing C and Co, "
            f"got {list(weight.shape)} for an input of {C} channels"
        )
    if G < 1 or C % G or offset.shape[1] != 2 * G * K:
        raise ValueError(
            f"offset: expected 2 * deform_groups * {kh} * {kw} channels with deform_groups dividing input's {C} "
            f"channels, got {offset.shape[1]}"
        )
    Ho, Wo = reference.output_size((H, W), (kh, kw), stride, padding, dilation)
    if Ho < 1 or Wo < 1:
        raise ValueError(
            f"input: a map of {H} x {W} is too small for a {kh} x {kw} kernel with padding {tuple(padding)} "
            f"and dilation {tuple(dilation)}: the output would be {Ho} x {Wo}"
        )
    for name, tensor, factors in (("offset", offset, 2 * G * K), ("mask", mask, G * K)):
        if tensor is not None and tensor.shape != (N, factors, Ho, Wo):
            raise ValueError(f"{name}: expected shape {[N, factors, Ho, Wo]}, got {list(tensor.shape)}")
    return N, Co, Ho, Wo


def _import_triton() -> tuple[Callable[..., None], Callable[..., None]]:
    from . import triton_launch  # only where it is used: importing Triton takes half a second

    return triton_launch.forward, triton_launch.backward


OPERATOR = KernelOperator(
    "deform_conv2d",
    "Tensor input, Tensor offset, Tensor? mask, Tensor weight, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, SymInt deform_groups",
    differentiable=("input", "offset", "mask", "weight"),
    features=("input", "weight"),
    contiguous=("weight",),
    layout_of="input",
    check=check_arguments,
    reference=reference.deform_conv2d,
    bounded=(reference.forward, reference.backward),
    cpp=True,
    triton=_import_triton,
).register()
count_flops(OPERATOR, flops.forward, flops.backward)
