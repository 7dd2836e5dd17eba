"""Modulated deformable RoI pooling: the public function, its checks and its registration, in that order.

The definition is the first function of `reference`. `triton_kernels`, `triton_launch` and csrc compute the same.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import LARGEST, as_pair, check_dtype, check_is_tensor, check_pair, check_tensor
from ..dispatch import KernelOperator
from ..flop_counting import count_flops
from ..tracing import record_call
from . import flops, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def deform_roi_pool(
    input: Tensor,  # [N, C, H, W]
    boxes: Tensor | Sequence[Tensor],  # [K, 5], or for each image [L, 4]
    output_size: int | tuple[int, int],
    offset: Tensor | None = None,  # [K, 2, ph, pw]
    mask: Tensor | None = None,  # [K, 1, ph, pw]
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:  # [K, C, ph, pw]
    """Averages the bins of boxes, each bin moved by ``offset`` and weighed by ``mask``.

    ``y(k) = dm_k / n_k * sum_j x(p_kj + dp_k)`` over the ``n_k`` bilinear samples of bin k: Deformable ConvNets v2,
    arXiv 1811.11168, section 3.2; without a mask it is v1. Without either it is ``torchvision.ops.roi_align(...,
    aligned=True)``: a sample up to one pixel outside the map counts as one on its border, and any further out as 0.

    Args:
        input: ``[N, C, H, W]``. A channels-last input gives a channels-last output and is not copied.
        boxes: ``[K, 5]``, rows of image index, x1, y1, x2, y2 in pixels before ``spatial_scale``; or a list with, for
            each image, its boxes ``[L, 4]``. Boxes get no gradient.
        output_size: Bins of a box, as an int or ``(vertical, horizontal)``.
        offset: ``[K, 2, ph, pw]`` as **(x, y)**, in units of ``gamma`` times the box's width and height.
        mask: ``[K, 1, ph, pw]``, one factor for each bin, or None for all ones.
        spatial_scale: Pixels of the map per pixel of the boxes, such as 1 / 4.
        sampling_ratio: Samples of a bin along each axis; 0 (or less) takes as many as the bin has pixels, rounded up.
        gamma: Scale of the offsets.

    Returns:
        ``[K, C, ph, pw]`` in input's dtype. bfloat16 and float16 accumulate in float32.

    Boxes, offset and mask have input's dtype, or float32 beside bfloat16 and float16. Where a sample is moved to the
    border, the derivative by its offset is 0, as the output does not change.

    Raises:
        ValueError: A shape or number that does not fit; the message names the argument.
        TypeError: A dtype that does not fit, or something that is no tensor.
        RuntimeError: Tensors on different devices, or a box of an image that isn't there.

    Example:
        >>> import torch
        >>> from torchdcn.ops import deform_roi_pool
        >>> x, boxes = torch.rand(1, 16, 50, 84), torch.tensor([[0, 10.0, 20.0, 200.0, 100.0]])
        >>> offset, mask = torch.randn(1, 2, 7, 7), torch.rand(1, 1, 7, 7)
        >>> deform_roi_pool(x, boxes, 7, offset, mask, spatial_scale=1 / 4).shape
        torch.Size([1, 16, 7, 7])
    """
    numbers = (spatial_scale, sampling_ratio, gamma)
    recorded: Any = record_call(deform_roi_pool, input, boxes, output_size, offset, mask, *numbers)
    if recorded is not None:
        return recorded  # type: ignore[no-any-return]  # a proxy for a tensor
    check_is_tensor("input", input)
    if not isinstance(boxes, Tensor):
        boxes = join_boxes(boxes, input)
    for name, tensor in (("offset", offset), ("mask", mask)):
        if tensor is not None:
            check_is_tensor(name, tensor)
    output: Tensor = torch.ops.torchdcn.deform_roi_pool.default(
        input, boxes, offset, mask, as_pair(output_size, "output_size"), _number("spatial_scale", spatial_scale),
        _count("sampling_ratio", sampling_ratio), _number("gamma", gamma),
    )  # fmt: skip
    return output


def join_boxes(boxes: Any, input: Tensor) -> Tensor:  # [K, 5]
    """Joins the boxes of all images, each behind the index of its image."""
    if not isinstance(boxes, (list, tuple)):
        raise TypeError(f"boxes: expected a tensor [K, 5] or a list of tensors [L, 4], got {type(boxes).__name__}")
    if input.dim() == 4 and len(boxes) != input.shape[0]:
        raise ValueError(f"boxes: expected a tensor for each of {input.shape[0]} images, got {len(boxes)}")
    for i, of_image in enumerate(boxes):
        check_is_tensor(f"boxes[{i}]", of_image)
        if of_image.dim() != 2 or of_image.shape[1] != 4:
            raise ValueError(f"boxes[{i}]: expected shape [L, 4], got {list(of_image.shape)}")
        check_tensor(f"boxes[{i}]", of_image, 2, input)
        check_dtype(f"boxes[{i}]", of_image, input, position=True)
        if i >= 256 and of_image.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(f"boxes[{i}]: expected torch.float32, for {of_image.dtype} can't count so many images")
    if not boxes:
        return input.new_zeros(0, 5)
    return torch.cat([torch.nn.functional.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])


def _number(name: str, value: Any) -> float:
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return value  # type: ignore[return-value]  # symbols of a trace stand for numbers
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _count(name: str, value: Any) -> int:
    try:
        return as_pair(value, name)[0] if not isinstance(value, (tuple, list)) else _count(name, None)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None


def check_arguments(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    output_size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> tuple[int, int, int, int]:  # the output's shape
    """Checks everything that a kernel relies on, once, before any of them runs, but for the boxes' values."""
    check_tensor("input", input, 4, input)
    check_dtype("input", input, input)
    for name, tensor, dimensions in (("boxes", boxes, 2), ("offset", offset, 4), ("mask", mask, 4)):
        if tensor is not None:
            check_tensor(name, tensor, dimensions, input)
            check_dtype(name, tensor, input, position=True)
    check_pair("output_size", output_size, 1)
    for name, number in (("spatial_scale", spatial_scale), ("gamma", gamma)):
        if type(number) is float and not math.isfinite(number):
            raise ValueError(f"{name}: expected a finite number, got {number}")
    if type(sampling_ratio) is int and sampling_ratio > LARGEST:
        raise ValueError(f"sampling_ratio: expected at most 2^31 - 1, got {sampling_ratio}")

    C, H, W = input.shape[1:]
    K, (ph, pw) = boxes.shape[0], output_size
    if C < 1 or H < 1 or W < 1:  # not min(): of symbols it would compare each with each
        raise ValueError(f"input: only the batch may be empty, got shape {list(input.shape)}")
    if any(type(n) is int and n > LARGEST for n in (H, W)):
        raise ValueError(f"input: expected maps below 2^31, got {H} x {W}")
    if boxes.shape[1] != 5:
        raise ValueError(f"boxes: expected shape [K, 5] (image, x1, y1, x2, y2), got {list(boxes.shape)}")
    for name, tensor, factors in (("offset", offset, 2), ("mask", mask, 1)):
        if tensor is not None and tensor.shape != (K, factors, ph, pw):
            raise ValueError(f"{name}: expected shape {[K, factors, ph, pw]}, got {list(tensor.shape)}")
    return K, C, ph, pw


def _import_triton() -> tuple[Callable[..., None], Callable[..., None]]:
    from . import triton_launch  # only where it is used: importing Triton takes half a second

    return triton_launch.forward, triton_launch.backward


OPERATOR = KernelOperator(
    "deform_roi_pool",
    "Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, "
    "SymInt[2] output_size, float spatial_scale, SymInt sampling_ratio, float gamma",
    differentiable=("input", "offset", "mask"),
    features=("input",),
    contiguous=("boxes", "offset", "mask"),
    layout_of="input",
    check=check_arguments,
    reference=reference.deform_roi_pool,
    bounded=(reference.forward, reference.backward),
    cpp=True,
    triton=_import_triton,
    traceable=reference.traceable,
).register()
count_flops(OPERATOR, flops.forward, flops.backward)
