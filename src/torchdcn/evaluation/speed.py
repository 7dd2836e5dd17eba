"""How fast an operator is, beside the dense convolution of the same shape and beside its peers.

Contenders run in turn, round after round, in one process: a machine that slows down slows all of them, so their ratios
hold where absolute times don't.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import deform_conv2d

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Shape:
    """A 3x3 convolution with padding 1, ``channels`` to ``channels``, on ``[batch, channels, height, width]``."""

    channels: int
    height: int
    width: int
    batch: int = 1
    deform_groups: int = 1

    def __str__(self) -> str:
        groups = f", {self.deform_groups} deformable groups" if self.deform_groups > 1 else ""
        return f"{self.batch} x {self.channels} @ {self.height}x{self.width}{groups}"


RESNET50 = (Shape(128, 100, 168), Shape(256, 50, 84), Shape(512, 25, 42))
"""The 3x3 convolutions of c3, c4 and c5 of a ResNet-50 that sees an image of 800 x 1344."""

OURS, DENSE, PEER = "torchdcn", "dense", "torchvision"


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender over so many rounds, after one that isn't counted.

    Example:
        >>> from torchdcn.evaluation.speed import measure
        >>> sorted(measure({"a": lambda: sum(range(9)), "b": lambda: None}, rounds=3))
        ['a', 'b']
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def operator_contenders(
    shape: Shape, training: bool, dtype: torch.dtype = torch.float32, peers: bool = True
) -> dict[str, Callable[[], object]]:
    """Calls of the dense convolution, of ours and of torchvision's, each on tensors of its own.

    Args:
        shape: What to convolve.
        training: Forward and backward (input, offset, mask, weight) instead of forward alone.
        dtype: Of the features and weights; offsets are drawn from N(0, 2) pixels.
        peers: Whether to include torchvision's operator, which may take minutes.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int) -> Tensor:
        return torch.randn(shape.batch, channels, shape.height, shape.width, generator=generator).to(dtype)

    taps = 9 * shape.deform_groups
    input, offset, mask = draw(shape.channels), 2 * draw(2 * taps), draw(taps).sigmoid()
    weight = torch.randn(shape.channels, shape.channels, 3, 3, generator=generator).to(dtype) / shape.channels
    last = input.contiguous(memory_format=torch.channels_last)

    def dense(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, w, padding=1)

    def ours(x: Tensor, w: Tensor, o: Tensor, m: Tensor) -> Tensor:
        return deform_conv2d(x, o, w, padding=1, mask=m)

    def torchvisions(x: Tensor, w: Tensor, o: Tensor, m: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d as peer

        return peer(x, o, w, padding=1, mask=m)  # type: ignore[no-any-return]

    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        f"{DENSE}, contiguous": (dense, (input, weight)),
        f"{DENSE}, channels-last": (dense, (last, weight.contiguous(memory_format=torch.channels_last))),
        f"{OURS}, contiguous": (ours, (input, weight, offset, mask)),
        f"{OURS}, channels-last": (ours, (last, weight, offset, mask)),
    }
    if peers and dtype != torch.bfloat16:  # which torchvision has no kernel for
        calls[PEER] = (torchvisions, (input, weight, offset, mask))
    return {name: _call(function, tensors, training) for name, (function, tensors) in calls.items()}


def _call(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], training: bool) -> Callable[[], object]:
    if not training:

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    cotangent = torch.ones_like(function(*leaves).detach())
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each contender's time over that of the dense convolution in its faster layout."""
    base = min(time for name, time in seconds.items() if name.startswith(DENSE))
    return {name: time / base for name, time in seconds.items()}


def machine() -> str:
    """What the figures were taken on, in one line."""
    features = [n for n in ("AVX512", "AVX2") if n in torch.backends.cpu.get_cpu_capability()]
    name = platform.processor() or platform.machine()
    return f"{name} {' '.join(features)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
