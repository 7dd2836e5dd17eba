"""RoI pooling's machine code without a GPU: it exists, spills nothing, and fits the shared memory."""

import os
import re

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("compiled kernels are asked for, and TRITON_INTERPRET is set", allow_module_level=True)

from torchdcn.ops.deform_roi_pool.triton_launch import BINS, POOL, SPREAD, TABLE  # only after the skips
from torchdcn.ops.triton.tiles import Block

from .cubin import PROCESSORS, Cubin, assert_fits, compiled, launches, pooling_launches

SLOW = os.environ.get("TORCHDCN_SLOW_TESTS") == "1"
KERNELS = (POOL, BINS, SPREAD)
DTYPES = {"16 bits": torch.bfloat16, "float32": torch.float32, "float64": torch.float64, "fixed": torch.float32}
QUICK = {(80, POOL, "16 bits"), (90, POOL, "16 bits"), (100, POOL, "16 bits"), (80, BINS, "float32"),
         (90, BINS, "16 bits"), (90, SPREAD, "16 bits"), (80, SPREAD, "fixed"), (90, SPREAD, "float32")}  # fmt: skip


def _all() -> list[tuple[int, str, str, Block]]:
    """Every block of the table on every architecture that uses it; one each for a few kernels in the ordinary suite."""
    found = []
    for (kernel, kind), by_architecture in TABLE.items():
        for architecture in PROCESSORS:
            blocks = by_architecture[max(least for least in by_architecture if least <= architecture)]
            if SLOW:
                found += [(architecture, kernel, kind, block) for block in blocks]
            elif (architecture, kernel, kind) in QUICK:
                found.append((architecture, kernel, kind, blocks[0]))
    return found


def _name(value: object) -> str:
    if isinstance(value, Block):
        return f"{value.positions}x{value.channels}"
    return str(value).replace(" ", "-")


def compile_for(architecture: int, kernel: str, kind: str, block: Block | None = None, **shape: int) -> Cubin:
    found = pooling_launches(architecture, DTYPES[kind], fixed=kind == "fixed", **shape)  # type: ignore[arg-type]
    return compiled(found[KERNELS.index(kernel)], architecture, block)


@pytest.mark.parametrize(("architecture", "kernel", "kind", "block"), _all(), ids=_name)
def test_no_block_spills_registers_or_exceeds_shared_memory(
    architecture: int, kernel: str, kind: str, block: Block
) -> None:
    cubin = compile_for(architecture, kernel, kind, block)
    assert_fits(cubin)
    if kernel == POOL:
        assert cubin.shared == 0  # nothing passes from thread to thread
        assert cubin.count("BAR") == 0
        assert cubin.count(r"LDG.*\.128") >= 4  # a thread reads 16 bytes of a pixel at once
        assert cubin.count(r"STG.*\.128") > 0
    if kernel == BINS:
        assert cubin.count(r"LDG.*\.128") >= 4
    if kernel == SPREAD and architecture >= 90 and kind in ("16 bits", "float32"):
        assert cubin.shared == 0
        assert cubin.count(r"RED.*F32x4") == 4  # a thread adds 16 bytes of a pixel at once, one pixel a corner
    if kernel == SPREAD and kind == "fixed":
        assert cubin.count(r"RED.*ADD\.64") > 0


VARIANTS = {
    "contiguous": {"contiguous": True},
    "odd-channels": {"C": 67},
    "few-channels": {"C": 8},
    "many-channels": {"C": 2048, "K": 10},
    "one-bin": {"bins": (1, 1)},
}


@pytest.mark.skipif(not SLOW, reason="60 compilations; TORCHDCN_SLOW_TESTS=1 runs them")
@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(("kernel", "kind"), [*((k, "16 bits") for k in KERNELS), (SPREAD, "fixed")], ids=_name)
@pytest.mark.parametrize("architecture", PROCESSORS)
def test_variants_spill_nothing_either(architecture: int, kernel: str, kind: str, shape: dict[str, int]) -> None:
    assert_fits(compile_for(architecture, kernel, kind, **shape))


@pytest.mark.parametrize("kind", ["16 bits", "float64"])
def test_products_in_positions_are_fused_with_no_sum(kind: str) -> None:
    """Of 4 coordinates by the scale, and along each axis of gamma by the size, by the offset, and of bins by theirs."""
    ptx = compile_for(90, POOL, kind).ptx
    rounded = re.findall(r"\bmul\.rn(?:\.ftz)?\.f64" if kind == "float64" else r"\bmul\.rn(?:\.ftz)?\.f32", ptx)
    assert len(rounded) >= 4 + 2 * 3  # without .rn the assembler fuses as it likes


def test_indices_have_64_bits_only_where_a_tensor_needs_them() -> None:
    def index(size: tuple[int, int], K: int) -> list[str]:
        return [str(launch.arguments["INDEX"]) for launch in pooling_launches(90, torch.bfloat16, 256, size, K)]

    assert index((2000, 2000), 1000) == ["int32"] * 3
    assert index((3000, 3000), 1000) == ["int64"] * 3
    assert index((200, 300), 200_000) == ["int64"] * 3


def test_few_boxes_get_programs_of_one_bin() -> None:
    def bins(K: int) -> list[int]:
        return [launch.block.positions for launch in pooling_launches(90, torch.bfloat16, K=K)]

    assert bins(1000) == [4, 4, 4]
    assert bins(3) == [1, 1, 1]


def test_every_kernel_can_be_autotuned() -> None:
    """Triton refuses names that are no arguments of the kernel."""
    from torchdcn.ops.triton import run

    for launch in (*pooling_launches(90, torch.float32, fixed=True), *launches(90, torch.float32, fixed=True)):
        sums = tuple(name for name in ("grad_input", "fixed") if launch.arguments.get(name) is not None)
        tuned = run._autotuned(launch.kernel, tuple(launch.blocks), sums)
        assert [config.maxnreg for config in tuned.configs] == [block.registers or None for block in launch.blocks]
        assert set(tuned.keys) <= set(launch.arguments)
