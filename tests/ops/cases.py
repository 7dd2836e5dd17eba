"""Cases of deformable convolution, and how two implementations are compared on them."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from torchdcn.ops import deform_conv2d, instruction_set
from torchdcn.ops.backends import INSTRUCTION_SETS

NAMES = ("input", "offset", "mask", "weight")
BACKENDS = ("reference", "cpp")


@dataclass(frozen=True)
class Case:
    name: str
    N: int = 2
    C: int = 8
    Co: int = 6
    size: tuple[int, int] = (9, 11)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    deform_groups: int = 1
    spread: float = 2.0  # standard deviation of the offsets, in pixels
    masked: bool = True

    def numbers(self) -> tuple[list[int], list[int], list[int], int, int]:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups, self.deform_groups

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
        generator = torch.Generator().manual_seed(0)
        Ho, Wo = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        K, G = math.prod(self.kernel), self.deform_groups

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        mask = draw(self.N, G * K, Ho, Wo).sigmoid()
        return [
            draw(self.N, self.C, *self.size).to(dtype),
            (self.spread * draw(self.N, 2 * G * K, Ho, Wo)).to(dtype),
            mask.to(dtype) if self.masked else None,
            draw(self.Co, self.C // self.groups, *self.kernel).to(dtype),
        ]


CASES = [
    Case("plain"),
    Case("unmasked", masked=False),
    Case("far", spread=9.0),
    Case("stride and dilation", stride=(2, 1), dilation=(1, 2), padding=(2, 0)),
    Case("1x1", kernel=(1, 1), padding=(0, 0), C=4),
    Case("5x3 on a thin map", kernel=(5, 3), size=(2, 13), padding=(2, 1)),
    Case("7x7", kernel=(7, 7), padding=(3, 3), N=1, C=3),
    Case("3 channels", C=3, Co=5),
    Case("24 to 67 channels", C=24, Co=67),
    Case("67 to 24 channels", C=67, Co=24),
    Case("whole panels", C=64, Co=128, N=1, size=(7, 20)),
    Case("more channels than are gathered at once", C=600, Co=4, size=(4, 5)),
    Case("4 deformable groups", C=24, deform_groups=4),
    Case("groups that cross deformable groups", C=24, Co=9, groups=3, deform_groups=4),
    Case("groups of 5 that cross deformable groups of 3", C=15, Co=9, groups=3, deform_groups=5),
    Case("depthwise", C=20, Co=20, groups=20, deform_groups=2),
    Case("depthwise, whole vectors", C=48, Co=48, groups=48),
    Case("groups of 2, 3 deformable groups", C=18, Co=18, groups=9, deform_groups=3),
    Case("groups of 4", C=40, Co=40, groups=10, deform_groups=2, masked=False),
    Case("groups of 8", C=24, Co=24, groups=3),
    Case("more narrow groups than are gathered at once", C=300, Co=300, groups=75, size=(4, 5), N=1),
    Case("one pixel", size=(1, 1), N=1),
    Case("tall", size=(70, 3), C=2),
]
# Positions of so many pixels that float32 has few digits left for where in a pixel they are.
FAR_CASES = [
    Case("most samples beyond the map", size=(100, 60), C=2, Co=2, N=1, spread=1000.0),
    Case("wide", size=(2, 1500), C=2, Co=2, N=1, spread=5.0),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
each_backend = pytest.mark.parametrize("name", BACKENDS)
each_instruction_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)


def skip_without(isa: str) -> None:
    """For tests that start a process for one instruction set: the choice is made once, when the first kernel runs."""
    if os.environ.get("TORCHDCN_ISA"):
        pytest.skip("this is the process that was started for one instruction set")
    if INSTRUCTION_SETS.index(isa) > INSTRUCTION_SETS.index(instruction_set()):
        pytest.skip(f"this CPU has {instruction_set()} at most")


def ours(case: Case, tensors: list[Tensor | None]) -> Tensor:
    input, offset, mask, weight = tensors
    assert input is not None
    assert offset is not None
    assert weight is not None
    return deform_conv2d(input, offset, weight, None, case.stride, case.padding, case.dilation, mask)


def torchvisions(case: Case, tensors: list[Tensor | None]) -> Tensor:
    input, offset, mask, weight = tensors
    return torchvision.ops.deform_conv2d(input, offset, weight, None, case.stride, case.padding, case.dilation, mask)


def gradients(
    function: Callable[[Any, list[Tensor | None]], Tensor],
    case: Any,
    tensors: list[Tensor | None],
    cotangent: Tensor | None = None,
    names: tuple[str, ...] = NAMES,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Output, gradients by name, 0 of what has none, and the random cotangent they were taken against."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    output = function(case, leaves)
    if cotangent is None:
        cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    present = {name: leaf for name, leaf in zip(names, leaves, strict=True) if leaf is not None}
    found = torch.autograd.grad(output, list(present.values()), cotangent.to(output.dtype), materialize_grads=True)
    return output.detach(), dict(zip(present, found, strict=True)), cotangent


def assert_like(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest element."""
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=0, atol=tolerance * max(scale, 1e-30))
