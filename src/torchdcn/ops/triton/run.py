"""Runs Triton kernels: chooses the block, the type of indices, and how many images to take at a time."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .tiles import INTERPRETED, Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST = 2**31 - 2**20  # an index rounded up to a whole tile still fits 32 bits
SIZES = ("BLOCK_M", "BLOCK_O", "BLOCK_C")
COPIES = 2**28
"""Bytes of scratch at a time (features in the kernels' layout, sums in float32); one image may need more."""


@dataclass(frozen=True)
class Launch:
    """A call of a kernel: its arguments, and the blocks it may run on."""

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
        tuned[lambda chosen: (self.programs(Block(*(chosen.get(size, 0) for size in SIZES))),)](**self.arguments)


def options(block: Block) -> dict[str, Any]:
    """A block as a kernel's keyword arguments."""
    # Fuses products with sums. Triton 3.10 and later do so only on request.
    return {**_sizes(block), **_threads(block), "enable_fp_fusion": True}


def _sizes(block: Block) -> dict[str, int]:
    sizes = zip(SIZES, (block.positions, block.outputs, block.channels), strict=True)
    return {name: size for name, size in sizes if size}


def _threads(block: Block) -> dict[str, int]:
    registers = {"maxnreg": block.registers} if block.registers else {}
    return {"num_warps": block.warps, "num_stages": block.stages, **registers}


@cache
def _autotuned(kernel: Any, blocks: tuple[Block, ...], sums: tuple[str, ...]) -> Any:
    configs = [triton.Config(_sizes(block), **_threads(block)) for block in blocks]
    shape = [name for name in ("layer", "size", "maps") if name in kernel.arg_names]
    return triton.autotune(configs, key=shape, reset_to_zero=list(sums))(kernel)


@cache
def hardware(device: torch.device) -> tuple[int, int]:
    """A device's architecture (90 for compute capability 9.0) and its number of multiprocessors."""
    if device.type != "cuda":
        return INTERPRETED, 1
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


def on(device: torch.device) -> Any:
    """Makes a device the current one, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def index_type(*largest: int) -> Any:
    """The integer type for indices up to the largest of these numbers."""
    return tl.int64 if max(largest) > LARGEST else tl.int32


def chunks(images: int, scratch: int) -> Iterator[slice]:
    """Cuts a batch into slices whose images, each with so many bytes of scratch, fit ``COPIES``."""
    count = max(1, min(images, COPIES // scratch)) if scratch else max(1, images)
    for first in range(0, images, count):
        yield slice(first, min(first + count, images))
