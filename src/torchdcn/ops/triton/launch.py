"""Launches the Triton kernels of deformable convolution on tensors in either layout.

``forward`` and ``backward`` have the signatures of the C++ kernels: what they compute is written to tensors that the
caller allocates. Kernels read channels-last features; what comes otherwise is copied once.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from . import deform_conv2d as kernels
from .blocks import DATA, FORWARD, INTERPRETED, WEIGHT, Block, candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

LARGEST = 2**31 - 2**20  # an index rounded up to a whole tile still fits 32 bits
SIZES = ("BLOCK_M", "BLOCK_O", "BLOCK_C")


@dataclass(frozen=True)
class Launch:
    """One kernel with all it is called with."""

    kernel: Any  # a triton.JITFunction, or its interpreted twin
    arguments: dict[str, Any]
    blocks: list[Block]  # from large to small
    programs: Callable[[Block], int]
    processors: int

    @property
    def block(self) -> Block:
        """The largest block that gives every processor a program, else the one that has most programs."""
        for block in self.blocks:
            if self.programs(block) >= self.processors:
                return block
        return max(self.blocks, key=self.programs)

    def run(self) -> None:
        """Runs the kernel on the current device; with TORCHDCN_AUTOTUNE=1 on the block that proves fastest."""
        if os.environ.get("TORCHDCN_AUTOTUNE") != "1" or len(self.blocks) == 1:
            self.kernel[(self.programs(self.block),)](**self.arguments, **options(self.block))
            return
        sums = tuple(name for name in ("grad_input", "fixed") if self.arguments.get(name) is not None)
        tuned = _autotuned(self.kernel, tuple(self.blocks), sums)
        tuned[lambda chosen: (self.programs(Block(*(chosen[size] for size in SIZES))),)](**self.arguments)


def options(block: Block) -> dict[str, Any]:
    """A block as a kernel's keyword arguments."""
    # Products and sums are fused; from Triton 3.10 on one has to ask for it.
    return {**_sizes(block), "num_warps": block.warps, "num_stages": block.stages, "enable_fp_fusion": True}


def _sizes(block: Block) -> dict[str, int]:
    return dict(zip(SIZES, (block.positions, block.outputs, block.channels), strict=True))


@cache
def _autotuned(kernel: Any, blocks: tuple[Block, ...], sums: tuple[str, ...]) -> Any:
    configs = [triton.Config(_sizes(block), num_warps=block.warps, num_stages=block.stages) for block in blocks]
    return triton.autotune(configs, key=["layer", "size"], reset_to_zero=list(sums))(kernel)


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
        largest = max(
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
            "INDEX": tl.int64 if largest > LARGEST else tl.int32,
            **others,
        }
        fixed = others.get("fixed") is not None
        blocks = candidates(name, kind, self.architecture, layer.outputs, layer.segment, fixed)
        return Launch(getattr(kernels, name), arguments, blocks, programs, self.processors)


def convolution(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    hardware: tuple[int, int] | None = None,
) -> Convolution:  # fmt: skip
    """Prepares tensors for the kernels; `hardware` is architecture and processors if not the device's own."""
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
        _rows(input), offset, mask, _rows(weight), layer, size, *(hardware or _hardware(input.device))
    )  # fmt: skip


def _rows(features: Tensor) -> Tensor:  # [N, C, H, W] -> dense [N, H, W, C], a view if it is channels-last
    return features.permute(0, 2, 3, 1).contiguous()


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of image, channel and position, of a tensor [N, channels, Ho, Wo] that is dense in either layout."""
    _, channels, Ho, Wo = tensor.shape
    if tensor.is_contiguous():
        return channels * Ho * Wo, Ho * Wo, 1
    return channels * Ho * Wo, 1, channels


@cache
def _hardware(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return INTERPRETED, 1
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


def _on(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def forward(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, deform_groups: int,
    output: Tensor,
) -> None:  # fmt: skip
    """Writes the convolution, without bias, to output."""
    if output.numel() == 0:
        return
    with _on(input.device):
        conv = convolution(input, offset, mask, weight, stride, padding, dilation, groups, deform_groups)
        rows = output.permute(0, 2, 3, 1)
        written = rows if rows.is_contiguous() else torch.empty_like(rows, memory_format=torch.contiguous_format)
        forward_launch(conv, written).run()
        if written is not rows:
            rows.copy_(written)


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
    with _on(input.device):
        conv = convolution(input, offset, mask, weight, stride, padding, dilation, groups, deform_groups)
        rows = _rows(grad_output)
        if grad_input is not None or grad_offset is not None or grad_mask is not None:
            _backward_data(conv, rows, grad_input, grad_offset, grad_mask)
        if grad_weight is not None:
            partial = torch.empty(splits(conv), *conv.weight.shape, dtype=_sum_dtype(input), device=input.device)
            weight_launch(conv, rows, partial).run()
            grad_weight.copy_(partial.sum(0).permute(0, 3, 1, 2))


def _sum_dtype(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _backward_data(
    conv: Convolution,
    grad_output: Tensor,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
) -> None:
    if grad_input is None:
        data_launch(conv, grad_output, None, None, None, grad_offset, grad_mask).run()
        return
    sums = torch.zeros_like(conv.input, dtype=_sum_dtype(conv.input))
    if torch.are_deterministic_algorithms_enabled():
        fixed, scale = torch.zeros_like(sums, dtype=torch.int64), _scale(conv, grad_output)
        data_launch(conv, grad_output, sums, fixed, scale, grad_offset, grad_mask).run()
        sums += (fixed / scale).to(sums.dtype)
    else:
        data_launch(conv, grad_output, sums, None, None, grad_offset, grad_mask).run()
    grad_input.copy_(sums.permute(0, 3, 1, 2))


def _scale(conv: Convolution, grad_output: Tensor) -> Tensor:  # [1] float64
    """A power of two by which no sum of finite terms can leave 63 bits.

    By Cauchy and Schwarz no gradient of a column is larger than the norms of a position's gradients and of the weights
    of one tap and channel; and at most all samples of an image fall on one pixel.
    """
    layer, size = conv.layer, conv.size
    columns = conv.weight.reshape(layer.groups, layer.outputs, -1)
    bound = _finite(grad_output).norm(dim=-1).max() * _finite(columns).norm(dim=1).max()
    if conv.mask is not None:
        bound = bound * _finite(conv.mask).abs().max()
    bound = (bound * (layer.K * size.Ho * size.Wo)).clamp(1e-200, 1e200)
    scale: Tensor = (61 - bound.log2().ceil()).exp2().reshape(1)
    return scale


def _finite(tensor: Tensor) -> Tensor:
    return tensor.double().nan_to_num(0, 0, 0)


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
