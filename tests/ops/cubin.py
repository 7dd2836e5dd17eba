"""Compiles Triton launches for GPUs that needn't be there, and reads what the machine code uses."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from torchdcn.ops.deform_conv2d.triton_launch import (
    Convolution,
    convolution,
    data_launch,
    forward_launch,
    weight_launch,
)
from torchdcn.ops.deform_conv2d.triton_launch import splits as splits_of
from torchdcn.ops.deform_roi_pool import triton_launch as pooling_launch
from torchdcn.ops.triton.features import Sums
from torchdcn.ops.triton.run import Launch, options
from torchdcn.ops.triton.tiles import Block

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
PROCESSORS = {80: 108, 90: 132, 100: 148}  # of A100, H100 and B200
SHARED = 99 * 1024  # bytes that one program may use on any chip from sm_80 on; those named above have 163 KiB and more


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture."""

    code: bytes
    shared: int  # bytes, as the launch asks for them
    ptx: str

    def _dump(self, *what: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.code)
            file.flush()
            return subprocess.run(
                [TOOLS / "cuobjdump", *what, file.name], capture_output=True, text=True, check=True
            ).stdout

    @cached_property
    def usage(self) -> dict[str, int]:
        """REG, STACK, LOCAL, ... of the kernel."""
        line = next(line for line in self._dump("-res-usage").splitlines() if "REG:" in line)
        return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}

    @cached_property
    def sass(self) -> str:
        """The machine code, an instruction a line with its address before it."""
        return self._dump("-sass")

    @cached_property
    def instructions(self) -> Counter[str]:
        """How often each instruction occurs, with its modifiers."""
        return Counter(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", self.sass, re.MULTILINE))

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))


def compiled(launch: Launch, architecture: int, block: Block | None = None) -> Cubin:
    """What Triton's JIT would make of a launch on that architecture."""
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    keywords = {**launch.arguments, **options(block or launch.block)}
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, left = bind(**keywords, debug=False, instrumentation_mode="")
    found, signature, constants, attributes = launch.kernel._pack_args(backend, left, bound, specialization, left)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=found.__dict__)
    return Cubin(result.asm["cubin"], result.metadata.shared, result.asm["ptx"])


def assert_fits(cubin: Cubin) -> None:
    assert cubin.usage["STACK"] == 0, cubin.usage
    assert cubin.usage["LOCAL"] == 0, cubin.usage
    assert cubin.count("LDL|STL") == 0
    assert cubin.usage["REG"] <= 255
    assert cubin.shared <= SHARED


def launches(
    architecture: int,
    dtype: torch.dtype,
    C: int = 256,
    size: tuple[int, int] = (50, 84),
    N: int = 1,
    groups: int = 1,
    deform_groups: int = 1,
    fixed: bool = False,
) -> list[Launch]:
    """The launches of a masked 3x3 convolution, C to C channels, forward and backward; the tensors have no memory."""

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def last(*shape: int) -> Tensor:
        return meta(*shape).contiguous(memory_format=torch.channels_last)

    H, W = size
    K, G = 9, deform_groups
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    offset, mask = meta(N, 2 * G * K, H, W), meta(N, G * K, H, W)
    conv: Convolution = convolution(
        last(N, C, H, W), offset, mask, last(C, C // groups, 3, 3), (1, 1), (1, 1), (1, 1), groups, G,
        (architecture, PROCESSORS[architecture]),
    )  # fmt: skip
    rows = meta(N, H, W, C)
    integers: list[Any] = [meta(N, H, W, C, dtype=torch.int64), meta(1, dtype=torch.float64)] if fixed else [None, None]
    return [
        forward_launch(conv, rows),
        data_launch(conv, rows, meta(N, H, W, C, dtype=sums), *integers, offset, mask),
        weight_launch(conv, rows, meta(splits_of(conv), C, 3, 3, C // groups, dtype=sums)),
    ]


def pooling_launches(
    architecture: int,
    dtype: torch.dtype,
    C: int = 256,
    size: tuple[int, int] = (200, 336),
    K: int = 1000,
    bins: tuple[int, int] = (7, 7),
    sampling_ratio: int = 0,
    fixed: bool = False,
    contiguous: bool = False,
) -> list[Launch]:
    """The launches of deformable RoI pooling with offset and mask, forward and backward; likewise without memory."""

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    H, W = size
    kind = torch.contiguous_format if contiguous else torch.channels_last
    pooled, sum_dtype = meta(K, C, *bins).contiguous(memory_format=kind), torch.promote_types(dtype, torch.float32)
    offset, mask = meta(K, 2, *bins, dtype=sum_dtype), meta(K, 1, *bins, dtype=sum_dtype)
    input = meta(1, C, H, W).contiguous(memory_format=torch.channels_last)
    call = pooling_launch.pooling(
        slice(0, 1), input, meta(K, 5, dtype=sum_dtype), offset, mask, bins, 1 / 4, sampling_ratio, 0.1, pooled,
        (architecture, PROCESSORS[architecture]),
    )  # fmt: skip
    integers: list[Any] = [meta(1, H, W, C, dtype=torch.int64), meta(1, dtype=torch.float64)] if fixed else [None, None]
    sums = Sums(call.input, meta(1, H, W, C, dtype=sum_dtype), *integers)
    return [
        pooling_launch.forward_launch(call, pooled),
        pooling_launch.bins_launch(call, pooled, offset, mask),
        pooling_launch.spread_launch(call, pooled, sums),
    ]
