"""Launches the Triton kernels of deformable RoI pooling on tensors in either layout.

``forward`` and ``backward`` have the signatures of the C++ kernels: what they compute is written to tensors that the
caller allocates. The kernels read a channels-last input; what comes otherwise is copied, a few images at a time. What
belongs to boxes they read and write as it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from ..triton.features import Sums, copied, rows
from ..triton.run import Launch, chunks, hardware, index_type, on
from ..triton.tiles import INTERPRETED, Block, Table, blocks_for
from . import triton_kernels as kernels
from .reference import assert_images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


POOL, BINS, SPREAD = "pool", "bin_gradients", "input_gradient"

# One warp for each bin: a thread reads 4 or 8 channels and plans the bin's samples for itself. Few boxes get programs
# of one bin, which are more. A thread writes in the layout in which it reads; otherwise values would pass through
# shared memory at every sample. sm_90 adds 16 bytes at once, which sets 4 channels there.
TABLE: Table = {
    (POOL, "16 bits"): {0: (Block(4, 0, 256), Block(1, 0, 256, warps=1))},
    (POOL, "float32"): {0: (Block(1, 0, 256, warps=1),)},
    (POOL, "float64"): {0: (Block(1, 0, 128, warps=1),)},
    (BINS, "16 bits"): {
        0: (Block(1, 0, 256, warps=1),),
        90: (Block(4, 0, 256), Block(1, 0, 256, warps=1)),
        100: (Block(4, 0, 256, registers=255), Block(1, 0, 256, warps=1)),
    },
    (BINS, "float32"): {
        0: (Block(1, 0, 128, warps=1),),
        90: (Block(4, 0, 128), Block(1, 0, 128, warps=1)),
    },
    (BINS, "float64"): {0: (Block(1, 0, 64, warps=1),)},
    (SPREAD, "16 bits"): {
        0: (Block(1, 0, 128, warps=1),),
        90: (Block(4, 0, 128), Block(1, 0, 128, warps=1)),
    },
    (SPREAD, "float32"): {
        0: (Block(1, 0, 128, warps=1),),
        90: (Block(4, 0, 128), Block(1, 0, 128, warps=1)),
    },
    (SPREAD, "float64"): {0: (Block(1, 0, 128, warps=1),)},
    (SPREAD, "fixed"): {0: (Block(1, 0, 64, warps=1),)},
}
INTERPRETED_BLOCK = Block(16, 0, 16)


def candidates(kernel: str, kind: str, architecture: int, bins: int, channels: int) -> list[Block]:
    """The blocks to choose from for boxes of so many bins, each once."""
    if architecture == INTERPRETED:
        return [INTERPRETED_BLOCK]
    blocks = blocks_for(TABLE, kernel, kind, architecture)
    return list(dict.fromkeys(block.fit_bins(bins, channels) for block in blocks))


@dataclass(frozen=True)
class Pooling:
    """The tensors as kernels read them, and the numbers that go with them."""

    input: Tensor  # [n, H, W, C], of images from maps.first on
    boxes: Tensor  # [K, 5]; this and those below contiguous
    offset: Tensor | None
    mask: Tensor | None
    numbers: dict[str, float]  # spatial_scale, sampling_ratio, gamma
    layer: kernels.Pooling
    maps: kernels.Maps
    architecture: int  # 90 for compute capability 9.0
    processors: int

    def launch(self, name: str, programs: Callable[[Block], int], **others: Any) -> Launch:
        """A kernel's launch; `others` are the arguments that not every kernel has."""
        tensors = [self.input, self.boxes, *(t for t in others.values() if isinstance(t, torch.Tensor))]
        arguments = {
            "boxes": self.boxes,
            "offset": self.offset,
            "mask": self.mask,
            "layer": self.layer,
            "maps": self.maps,
            **self.numbers,
            "ACC": tl.float64 if self.input.dtype == torch.float64 else tl.float32,
            "INDEX": index_type(*(t.numel() for t in tensors)),
            **others,
        }
        kind = {torch.float64: "float64", torch.float32: "float32"}.get(self.input.dtype, "16 bits")
        kind = "fixed" if others.get("fixed") is not None else kind
        blocks = candidates(name, kind, self.architecture, self.layer.bins, self.layer.C)
        return Launch(getattr(kernels, name), arguments, blocks, programs, self.processors)

    def tiles(self, block: Block) -> int:
        """How many tiles the bins of all boxes make."""
        return len(self.boxes) * int(triton.cdiv(self.layer.bins, block.positions))

    def shares(self, block: Block) -> int:
        """How many tiles these are, counted once for each block of channels."""
        return self.tiles(block) * int(triton.cdiv(self.layer.C, block.channels))


def pooling(
    images: slice, input: Tensor, boxes: Tensor, offset: Tensor | None, mask: Tensor | None,
    output_size: Sequence[int], spatial_scale: float, sampling_ratio: int, gamma: float,
    pooled: Tensor,  # [K, C, ph, pw], the output or its gradient: for its strides
    on_hardware: tuple[int, int] | None = None,
) -> Pooling:  # fmt: skip
    """Prepares tensors for the kernels; `on_hardware` is architecture and processors if not the device's own."""
    (_, C, H, W), (ph, pw) = input.shape, output_size
    strides = (ph * pw, 1) if pooled.is_contiguous() else (1, C)
    numbers = {"spatial_scale": float(spatial_scale), "sampling_ratio": sampling_ratio, "gamma": float(gamma)}
    taken = rows(input[images])
    return Pooling(
        taken, boxes, offset, mask, numbers, kernels.Pooling(C, ph, pw, ph * pw, *strides),
        kernels.Maps(H, W, images.start, len(taken)), *(on_hardware or hardware(input.device)),
    )  # fmt: skip


def forward(
    input: Tensor, boxes: Tensor, offset: Tensor | None, mask: Tensor | None,
    output_size: Sequence[int], spatial_scale: float, sampling_ratio: int, gamma: float,
    output: Tensor,
) -> None:  # fmt: skip
    """Writes the pooled features to output."""
    assert_images(boxes[:, 0], len(input))
    if output.numel() == 0:
        return
    numbers = output_size, spatial_scale, sampling_ratio, gamma
    with on(input.device):
        for images in chunks(len(input), copied(input)):
            forward_launch(pooling(images, input, boxes, offset, mask, *numbers, output), output).run()


def forward_launch(call: Pooling, output: Tensor) -> Launch:
    """The kernel of the value."""
    return call.launch(POOL, call.shares, input=call.input, output=output)


def backward(
    grad_output: Tensor,
    input: Tensor, boxes: Tensor, offset: Tensor | None, mask: Tensor | None,
    output_size: Sequence[int], spatial_scale: float, sampling_ratio: int, gamma: float,
    grad_input: Tensor | None, grad_offset: Tensor | None, grad_mask: Tensor | None,
) -> None:  # fmt: skip
    """Writes the gradients that aren't None.

    Where torch.use_deterministic_algorithms asks for it, grad_input is summed in 64-bit fixed point, as the
    convolution's is. The other gradients always are deterministic.
    """
    assert_images(boxes[:, 0], len(input))
    if grad_output.numel() == 0:
        for gradient in (grad_input, grad_offset, grad_mask):
            if gradient is not None:
                gradient.zero_()
        return
    numbers = output_size, spatial_scale, sampling_ratio, gamma
    bound = cache(lambda: _bound(grad_output, mask))
    scratch = copied(input) + (0 if grad_input is None else Sums.scratch(grad_input))
    with on(input.device):
        for images in chunks(len(input), scratch):
            call = pooling(images, input, boxes, offset, mask, *numbers, grad_output)
            if grad_offset is not None or grad_mask is not None:
                bins_launch(call, grad_output, grad_offset, grad_mask).run()
            if grad_input is not None:
                sums = Sums.of(grad_input[images], bound)
                spread_launch(call, grad_output, sums).run()
                sums.write()
                del sums
            del call  # frees its copies before the next images are copied


def _bound(grad_output: Tensor, mask: Tensor | None) -> Tensor:
    """An upper bound of the input's gradient, over its finite terms.

    A bin adds at most its own gradient to a pixel, as it averages; and at most all bins fall on one.
    """
    largest = _largest(grad_output) * (grad_output.numel() // grad_output.shape[1])
    return largest if mask is None else largest * _largest(mask)


def _largest(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0, 0, 0).abs().max().double()


def bins_launch(call: Pooling, grad_output: Tensor, grad_offset: Tensor | None, grad_mask: Tensor | None) -> Launch:
    """The kernel of the gradients of offset and mask."""
    return call.launch(
        BINS, call.tiles, input=call.input, grad_output=grad_output, grad_offset=grad_offset, grad_mask=grad_mask
    )


def spread_launch(call: Pooling, grad_output: Tensor, sums: Sums) -> Launch:
    """The kernel of the gradient of the input."""
    return call.launch(
        SPREAD, call.shares, grad_output=grad_output, grad_input=sums.floats, fixed=sums.fixed, scale=sums.scale
    )
