"""The tables of docs/gpu.md: a roofline on paper, and what the machine code uses. Needs no GPU."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.ops.cubin import compiled, launches
from torchdcn.ops.deform_conv2d.triton_launch import TABLE
from torchdcn.ops.triton.run import Launch  # noqa: TC001  # a script needs no second block of imports
from torchdcn.ops.triton.tiles import Block  # noqa: TC001  # likewise

K = 9


@dataclass(frozen=True)
class Chip:
    """Published figures at boost clock, dense; `l2` for H100 is the A100's bytes per clock, for want of its own."""

    name: str
    architecture: int
    processors: int
    clock: float  # Hz
    bf16: float  # FLOP/s
    tf32: float
    memory: float  # byte/s
    l2: float  # byte/s

    @property
    def lanes(self) -> float:
        """Instructions of one thread a second, 4 warps of 32 a clock; and bytes from L1, 128 a clock."""
        return self.processors * 128 * self.clock


CHIPS = (
    Chip("A100", 80, 108, 1.41e9, 312e12, 156e12, 2.039e12, 5120 * 1.41e9),
    Chip("H100", 90, 132, 1.83e9, 989e12, 494.7e12, 3.35e12, 5120 * 1.83e9),
)
SHAPES = ((128, 100, 168), (256, 50, 84), (512, 25, 42))
DTYPES = {"bf16": (torch.bfloat16, 2, 9), "tf32": (torch.float32, 4, 5)}
"""Bytes, and instructions per element of a column: 4 FMA, 4 conversions of 16 bits, and a share of loads and stores."""


def bounds(chip: Chip, launch: Launch, shape: tuple[int, int, int], kind: str) -> dict[str, float]:
    """Seconds that each resource needs by itself."""
    C, H, W = shape
    P, (_, size, work) = H * W, DTYPES[kind]
    kernel, block = launch.kernel.__name__, launch.block
    columns = P * K * C
    peak = chip.bf16 if kind == "bf16" else chip.tf32
    once = size * (2 * C * P + 3 * K * P + K * C * C)  # features in and out, offset and mask, weight
    tiles = -(-P // block.positions)
    if kernel == "data_gradients":
        # Each tap and block of channels reads grad_output again, each tile the weight; corners are read and added to.
        operands = size * (P * C * K * -(-C // block.channels) + tiles * K * C * C)
        once += (size + 4) * C * P
        gathers, l2 = 1, operands + 4 * 4 * columns
    elif kernel == "weight_gradient":
        gathers, l2 = -(-C // block.outputs), size * P * C * K * -(-C // block.channels)
    else:
        gathers, l2 = -(-C // block.outputs), size * tiles * K * C * C
    return {
        "tensor cores": 2 * columns * C / peak,
        "instructions": columns * gathers * work / chip.lanes,
        "L1": 4 * size * columns * gathers / chip.lanes,
        "L2": l2 / chip.l2,
        "memory": once / chip.memory,
    }


def header(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")


def roofline() -> None:
    resources = ("tensor cores", "instructions", "L1", "L2", "memory")
    header("chip", "dtype", "shape", "kernel", "block", "programs", *resources, "bound")
    for chip in CHIPS:
        for kind in DTYPES:
            torch.backends.cudnn.conv.fp32_precision = "tf32"
            for shape in SHAPES:
                C, H, W = shape
                for launch in launches(chip.architecture, DTYPES[kind][0], C, (H, W)):
                    times, block = bounds(chip, launch, shape, kind), launch.block
                    worst = max(times, key=lambda name: times[name])
                    print(
                        f"| {chip.name} | {kind} | {C} @ {H}x{W} | {launch.kernel.__name__} | {_name(block)} "
                        f"| {launch.programs(block)} "
                        f"| {' | '.join(f'{1e6 * t:.0f} µs' for t in times.values())} | {worst} |"
                    )


def _name(block: Block) -> str:
    return f"{block.positions}x{block.outputs}x{block.channels}, {block.warps} warps"


def resources() -> None:
    header("kernel", "multiplies", "block", "sm", "registers", "spilled", "shared memory", "matrix", "loads", "atomics")
    kernels = ("forward", "data_gradients", "weight_gradient")
    dtypes = {"16 bits": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "float64": torch.float64}
    for (kernel, kind), by_architecture in TABLE.items():
        torch.backends.cudnn.conv.fp32_precision = "ieee" if kind == "ieee" else "tf32"
        for architecture in (80, 90, 100):
            launch = launches(architecture, dtypes[kind])[kernels.index(kernel)]
            for block in by_architecture[max(least for least in by_architecture if least <= architecture)]:
                cubin = compiled(launch, architecture, block)
                matrix = {name: n for name, n in cubin.instructions.items() if "MMA" in name.split(".")[0]}
                atomics = {name.split(".FTZ")[0]: n for name, n in cubin.instructions.items() if name.startswith("RED")}
                atomics.pop("REDUX", None)
                print(
                    f"| {kernel} | {kind} | {_name(block)} | {architecture} | {cubin.usage['REG']} "
                    f"| {cubin.usage['STACK'] + cubin.usage['LOCAL']} | {cubin.shared / 1024:.1f} KiB "
                    f"| {listed(matrix)} | {cubin.count(r'LDG.*[.]128|LDGSTS.*[.]128')} | {listed(atomics)} |",
                    flush=True,
                )


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("roofline", "resources"))
    {"roofline": roofline, "resources": resources}[parser.parse_args().table]()
