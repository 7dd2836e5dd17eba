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

from ..sampling import sum_dtype
from ..triton.features import Sums, copied, finite, rows
from ..triton.run import Launch, chunks, hardware, index_type, on
from ..triton.tiles import INTERPRETED, Block, Table, blocks_for
from . import triton_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


FORWARD, DATA, WEIGHT = "forward", "data_gradients", "weight_gradient"

# Large tiles share a sample among more outputs; small ones give every processor a program. The kinds are 16 bits,
# float32 multiplied by "tf32" or "ieee", and float64. No block spills registers, and none needs more shared memory than
# the smallest chip of its architecture has.
TABLE: Table = {
    (FORWARD, "16 bits"): {0: (Block(128, 128, 32, warps=8), Block(64, 128, 32), Block(32, 64, 32, registers=255))},
    (FORWARD, "tf32"): {
        0: (Block(64, 128, 16, warps=8), Block(64, 64, 16), Block(32, 64, 32)),
        90: (Block(64, 128, 32, warps=8, registers=255), Block(64, 64, 32), Block(32, 64, 32)),
    },
    (FORWARD, "ieee"): {
        0: (Block(64, 64, 16, warps=8), Block(32, 32, 16)),
        90: (Block(64, 64, 16, warps=8), Block(32, 64, 16)),
    },
    (FORWARD, "float64"): {0: (Block(32, 32, 16, registers=255),)},
    (DATA, "16 bits"): {
        0: (Block(64, 64, 32, warps=8), Block(32, 64, 32)),
        90: (Block(64, 64, 64, warps=8), Block(32, 64, 64)),
    },
    (DATA, "tf32"): {
        0: (Block(64, 32, 32, warps=8), Block(32, 32, 32, registers=255)),
        90: (Block(64, 32, 64, warps=8), Block(32, 32, 64)),
    },
    (DATA, "ieee"): {0: (Block(32, 16, 16),)},
    (DATA, "float64"): {0: (Block(32, 16, 16, warps=8),)},
    (WEIGHT, "16 bits"): {0: (Block(64, 128, 64, warps=8), Block(32, 64, 64))},
    (WEIGHT, "tf32"): {0: (Block(32, 128, 64, warps=8), Block(32, 64, 64))},
    (WEIGHT, "ieee"): {
        0: (Block(16, 64, 32, warps=8), Block(16, 32, 32)),
        100: (Block(16, 64, 32, warps=8, registers=255),),
    },
    (WEIGHT, "float64"): {0: (Block(16, 32, 16),)},
}
INTERPRETED_BLOCK = Block(64, 16, 16)  # small, so that a small test has several tiles of everything


def candidates(
    kernel: str, kind: str, architecture: int, outputs: int, channels: int, fixed: bool = False
) -> list[Block]:
    """The blocks to choose from, each once, for so many outputs of a group and channels of a segment.

    Channels that can't be read 16 bytes at a time need more registers, and so do sums in fixed point.
    """
    if architecture == INTERPRETED:
        return [INTERPRETED_BLOCK]
    most = 16 if channels % 8 or fixed else 128
    blocks = blocks_for(TABLE, kernel, kind, architecture)
    return list(dict.fromkeys(block.fit_product(outputs, channels, most) for block in blocks))


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
        # The flag of torch's own convolutions; its default allows TF32.
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
    """Strides by image, channel and position of a tensor [N, channels, Ho, Wo] that is dense in either layout."""
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
    """Convolves a few images; their copies are freed before the next ones are copied."""
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
            del conv  # frees its copies before the next images are copied
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
    """An upper bound of the input's gradient, over its finite terms.

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
    """The number of shares to cut the positions into: each processor gets a program, better two."""
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
