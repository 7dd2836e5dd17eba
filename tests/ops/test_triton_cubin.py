"""What can be said of the machine code without a GPU: it exists, spills nothing, and fits the shared memory."""

import os
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("compiled kernels are asked for, and TRITON_INTERPRET is set", allow_module_level=True)

from torchdcn.ops.deform_conv2d.triton_launch import DATA, FORWARD, TABLE, WEIGHT  # only after the skips
from torchdcn.ops.triton.run import options
from torchdcn.ops.triton.tiles import Block

from .cubin import PROCESSORS, Cubin, assert_fits, compiled, launches

SLOW = os.environ.get("TORCHDCN_SLOW_TESTS") == "1"
KERNELS = (FORWARD, DATA, WEIGHT)
DTYPES = {"16 bits": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "float64": torch.float64}
QUICK = {(80, FORWARD, "16 bits"), (90, FORWARD, "16 bits"), (100, FORWARD, "16 bits"), (80, DATA, "tf32"),
         (90, DATA, "16 bits"), (90, WEIGHT, "16 bits"), (90, FORWARD, "ieee")}  # fmt: skip

SPILLED = 90, FORWARD, "16 bits"  # the smallest of its blocks did, before it had a limit of registers


def _all() -> list[tuple[int, str, str, Block]]:
    """Every block of the table on every architecture that uses it; one each for a few kernels in the ordinary suite."""
    found = []
    for (kernel, kind), by_architecture in TABLE.items():
        for architecture in PROCESSORS:
            blocks = by_architecture[max(least for least in by_architecture if least <= architecture)]
            if SLOW:
                found += [(architecture, kernel, kind, block) for block in blocks]
            elif (architecture, kernel, kind) in QUICK:
                chosen = blocks[::2] if (architecture, kernel, kind) == SPILLED else blocks[:1]
                found += [(architecture, kernel, kind, block) for block in chosen]
    return found


def _name(value: object) -> str:
    if isinstance(value, Block):
        return f"{value.positions}x{value.outputs}x{value.channels}"
    return str(value).replace(" ", "-")


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def compile_for(architecture: int, kernel: str, kind: str, block: Block | None = None, **shape: int) -> Cubin:
    torch.backends.cudnn.conv.fp32_precision = "ieee" if kind == "ieee" else "tf32"
    launch = launches(architecture, DTYPES[kind], **shape)[KERNELS.index(kernel)]  # type: ignore[arg-type]
    return compiled(launch, architecture, block)


@pytest.mark.parametrize(("architecture", "kernel", "kind", "block"), _all(), ids=_name)
def test_no_block_spills_registers_or_exceeds_shared_memory(
    architecture: int, kernel: str, kind: str, block: Block
) -> None:
    cubin = compile_for(architecture, kernel, kind, block)
    assert_fits(cubin)
    tensor_cores = {80: "HMMA|DMMA", 90: "HGMMA|HMMA|DMMA", 100: "UTC.*MMA|HMMA|DMMA"}[architecture]
    assert bool(cubin.count(tensor_cores)) == (kind != "ieee")
    if architecture == 90 and kind == "16 bits" and block.positions >= 64:
        assert cubin.count("HGMMA") > 0  # wgmma, which reads its operands from shared memory
    if kernel == FORWARD:
        assert cubin.count(r"LDG.*\.128|LDGSTS.*\.128") > 0  # a thread reads 16 bytes of a pixel at once
        assert cubin.count(r"STG.*\.128") > 0
    if kernel == DATA and architecture >= 90 and kind != "float64":
        assert cubin.count(r"RED.*F32x4") > 0  # a thread adds 16 bytes of a pixel at once


VARIANTS = {
    "deterministic": {"fixed": True},
    "groups": {"groups": 2, "deform_groups": 4},
    "odd-channels": {"C": 67},
    "few-channels": {"C": 8},
}


@pytest.mark.skipif(not SLOW, reason="24 compilations; TORCHDCN_SLOW_TESTS=1 runs them")
@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", [80, 90])
def test_variants_spill_nothing_either(architecture: int, kernel: str, shape: dict[str, int]) -> None:
    assert_fits(compile_for(architecture, kernel, "16 bits", **shape))


def test_indices_have_64_bits_only_where_a_tensor_needs_them() -> None:
    def index(size: tuple[int, int], N: int) -> list[str]:
        return [str(launch.arguments["INDEX"]) for launch in launches(90, torch.bfloat16, 8, size, N)]

    assert index((1000, 1000), 16) == ["int32"] * 3
    assert index((1000, 1000), 300) == ["int64"] * 3


def test_a_blocks_limit_of_registers_reaches_the_compiler() -> None:
    limited, free = Block(32, 64, 32, registers=255), Block(32, 64, 32)
    assert options(limited) == {**options(free), "maxnreg": 255}
    assert "maxnreg" not in options(free)


def test_small_problems_get_small_blocks() -> None:
    def positions(size: tuple[int, int], N: int) -> int:
        return launches(90, torch.bfloat16, 128, size, N)[0].block.positions

    assert positions((100, 168), 1) == 128
    assert positions((50, 84), 1) < 128
    assert positions((13, 21), 1) == 32
