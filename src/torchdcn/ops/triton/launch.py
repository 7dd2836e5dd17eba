"""Launches the Triton kernels of deformable convolution on tensors in either layout.

``forward`` and ``backward`` have the signatures of the C++ kernels: what they compute is written to tensors that the
caller allocates. Kernels read channels-last features; what comes otherwise is copied, a few images at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from . import deform_conv2d as kernels
from .blocks import DATA, FORWARD, WEIGHT, Block, candidates
from .features import Sums, copied, finite, rows, sum_dtype
from .run import Launch, chunks, hardware, index_type, on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Convolution:
    """The tensors as kernels read them, and the numbers that follow from their shapes and device."""

    input: Tensor  # [N, H, W, C]
    offset: Tensor  # dense in either layout
    mask: Tensor | None
    weight: Tensor  # [Co, kh, kw, C / groups]
    layer: kernels.Layer
    size: kernels.Size
    architecture: int  # 90 for compute capability 9.0
    processors: int

    def launch(self, name: str, programs: Callable[[Block], int], **others: Any) -> Launch:
        """A kernel's launch; `others` are the arguments that not every kernel has."""
        layer, size, dtype = self.layer, self.size, self.input.dtype
        # torch's own convolutions go by this flag, by which TF32 is allowed unless one says otherwise.
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set by torch where mypy doesn't see it
        precision = "tf32" if conv.fp32_precision == "tf32" else "ieee"
        kind = {torch.float64: "float64", torch.float32: precision}.get(dtype, "16 bits")
        index = index_type(
            *(t.numel() for t in (self.input, self.offset, self.weight)),
            *(t.numel() for t in others.values() if isinstance(t, torch.Tensor)),
            (size.Ho - 1) * layer.stride_y + layer.padding_y + layer.K // layer.kw * layer.dilation_y,
            (size.Wo - 1) * layer.stride_x + layer.padding_x + layer.kw * layer.dilation_x,
        )
        arguments = {
            "input": self.input,
            "offset": self.offset,
            "mask": self.mask,
            "layer": layer,
            "size": size,
            "PRECISION": precision,
            "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
            "INDEX": index,
            **others,
        }
        fixed = others.get("fixed") is not None
        blocks = candidates(name, kind, self.architecture, layer.outputs, layer.segment, fixed)
        return Launch(getattr(kernels, name), arguments, blocks, programs, self.processors)


def convolution(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    on_hardware: tuple[int, int] | None = None,
) -> Convolution:  # fmt: skip
    """Prepares tensors for the kernels; `on_hardware` is architecture and processors if not the device's own."""
    _, C, H, W = input.shape
    Co, inputs, kh, kw = weight.shape
    N, _, Ho, Wo = offset.shape
    moved = C // deform_groups
    (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
    layer = kernels.Layer(
        C, Co, kh * kw, kw, sy, sx, py, px, dy, dx,
        groups, deform_groups, inputs, Co // groups, moved, math.gcd(inputs, moved),
    )  # fmt: skip
    strides = _strides(mask) if mask is not None else (0, 0, 0)
    size = kernels.Size(N * Ho * Wo, H, W, Ho, Wo, *_strides(offset), *strides)
    return Convolution(
        rows(input), offset, mask, rows(weight), layer, size, *(on_hardware or hardware(input.device))
    )  # fmt: skip


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of image, channel and position, of a tensor [N, channels, Ho, Wo] that is dense in either layout."""
    _, channels, Ho, Wo = tensor.shape
    if tensor.is_contiguous():
        return channels * Ho * Wo, Ho * Wo, 1
    return channels * Ho * Wo, 1, channels


def forward(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    output: Tensor,
) -> None:  # fmt: skip
    """Writes the convolution, without bias, to output."""
    if output.numel() == 0:
        return
    weight = _as_rows(weight)
    with on(input.device):
        for images in chunks(len(input), copied(input) + copied(output)):
            taken = input[images], offset[images], None if mask is None else mask[images]
            _forward(*taken, weight, stride, padding, dilation, groups, deform_groups, output[images])


def _forward(*arguments: Any) -> None:
    """Of a few images, so that what was copied for them is gone before the next ones are copied."""
    *tensors, output = arguments
    target = output.permute(0, 2, 3, 1)
    written = target if target.is_contiguous() else target.new_empty(target.shape)
    forward_launch(convolution(*tensors), written).run()
    if written is not target:
        target.copy_(written)


def _as_rows(weight: Tensor) -> Tensor:
    """The weight, laid out so that ``rows`` copies nothing, once for all images."""
    return rows(weight).permute(0, 3, 1, 2)


def forward_launch(conv: Convolution, output: Tensor) -> Launch:
    """The kernel of the value; output is [N, Ho, Wo, Co]."""
    layer = conv.layer

    def programs(block: Block) -> int:
        tiles = triton.cdiv(layer.outputs, block.outputs)
        return int(triton.cdiv(conv.size.M, block.positions) * layer.groups * tiles)

    return conv.launch(FORWARD, programs, weight=conv.weight, output=output)


def backward(
    grad_output: Tensor,
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    grad_input: Tensor | None, grad_offset: Tensor | None, grad_mask: Tensor | None, grad_weight: Tensor | None,
) -> None:  # fmt: skip
    """Writes the gradients that aren't None; offset's and mask's lie in memory as offset and mask do.

    Where torch.use_deterministic_algorithms asks for it, grad_input is summed in 64-bit fixed point, which gives the
    same bits every time and takes 8 bytes more per element of the input. The other gradients always are deterministic.
    """
    if grad_output.numel() == 0:
        for gradient in (grad_input, grad_offset, grad_mask, grad_weight):
            if gradient is not None:
                gradient.zero_()
        return
    weight = _as_rows(weight)
    weights = None if grad_weight is None else torch.zeros_like(rows(weight), dtype=sum_dtype(weight))
    scratch = copied(input) + copied(grad_output) + (0 if grad_input is None else Sums.scratch(grad_input))
    with on(input.device):
        for images in chunks(len(input), scratch):
            taken = input[images], offset[images], None if mask is None else mask[images]
            conv = convolution(*taken, weight, stride, padding, dilation, groups, deform_groups)
            written = [None if t is None else t[images] for t in (grad_input, grad_offset, grad_mask)]
            _backward(conv, rows(grad_output[images]), written, weights)
            del conv  # what was copied for these images, before the next ones are copied
        if grad_weight is not None and weights is not None:
            grad_weight.copy_(weights.permute(0, 3, 1, 2))


def _backward(
    conv: Convolution,
    grad_output: Tensor,  # [n, Ho, Wo, Co]
    written: Sequence[Tensor | None],  # gradients of input, offset and mask
    weights: Tensor | None,  # sums of the weight's gradient, to be added to
) -> None:
    grad_input, grad_offset, grad_mask = written
    if grad_input is not None:
        sums = Sums.of(grad_input, lambda: _bound(conv, grad_output))
        data_launch(conv, grad_output, sums.floats, sums.fixed, sums.scale, grad_offset, grad_mask).run()
        sums.write()
    elif grad_offset is not None or grad_mask is not None:
        data_launch(conv, grad_output, None, None, None, grad_offset, grad_mask).run()
    if weights is not None:
        partial = torch.empty(splits(conv), *weights.shape, dtype=weights.dtype, device=weights.device)
        weight_launch(conv, grad_output, partial).run()
        weights += partial.sum(0)


def _bound(conv: Convolution, grad_output: Tensor) -> Tensor:
    """No element of the input's gradient is larger, finite terms only.

    By Cauchy and Schwarz no gradient of a column is larger than the norms of a position's gradients and of the weights
    of one tap and channel; and at most all samples of an image fall on one pixel.
    """
    layer, size = conv.layer, conv.size
    columns = conv.weight.reshape(layer.groups, layer.outputs, -1)
    bound: Tensor = finite(grad_output).norm(dim=-1).max() * finite(columns).norm(dim=1).max()
    if conv.mask is not None:
        bound = bound * finite(conv.mask).abs().max()
    return bound * (layer.K * size.Ho * size.Wo)


def data_launch(
    conv: Convolution, grad_output: Tensor, grad_input: Tensor | None, fixed: Tensor | None, scale: Tensor | None,
    grad_offset: Tensor | None, grad_mask: Tensor | None,
) -> Launch:  # fmt: skip
    """The kernel of the gradients of input, offset and mask; grad_output is [N, Ho, Wo, Co]."""

    def programs(block: Block) -> int:
        return int(triton.cdiv(conv.size.M, block.positions) * conv.layer.deform_groups * conv.layer.K)

    return conv.launch(
        DATA, programs, weight=conv.weight, grad_output=grad_output, grad_input=grad_input, fixed=fixed, scale=scale,
        grad_offset=grad_offset, grad_mask=grad_mask,
    )  # fmt: skip


def splits(conv: Convolution) -> int:
    """Into how many shares the positions go, so that every processor has a program, better two."""
    layer = conv.layer
    block = candidates(WEIGHT, "16 bits", conv.architecture, layer.outputs, layer.segment)[0]
    shares = int(triton.cdiv(2 * conv.processors, _weight_programs(layer, block)))
    return max(1, min(shares, conv.size.M // 512))


def _weight_programs(layer: kernels.Layer, block: Block) -> int:
    tiles = triton.cdiv(layer.outputs, block.outputs) * triton.cdiv(layer.segment, block.channels)
    return int(layer.K * (layer.C // layer.segment) * tiles)


def weight_launch(conv: Convolution, grad_output: Tensor, partial: Tensor) -> Launch:
    """The kernel of the weight's gradient; partial is [splits, Co, kh, kw, C / groups], to be summed."""
    count = partial.shape[0]

    def programs(block: Block) -> int:
        return count * _weight_programs(conv.layer, block)

    return conv.launch(WEIGHT, programs, grad_output=grad_output, partial=partial, splits=count)
