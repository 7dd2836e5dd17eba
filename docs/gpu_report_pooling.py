"""RoI pooling's tables of docs/gpu.md: a roofline on paper, and what the machine code uses. Needs no GPU."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from docs.gpu_report import CHIPS, Chip, header, listed
from tests.ops.cubin import Cubin, compiled, pooling_launches
from torchdcn.ops.deform_roi_pool.triton_launch import TABLE
from torchdcn.ops.triton.run import Launch  # noqa: TC001  # a script needs no second block of imports
from torchdcn.ops.triton.tiles import Block  # noqa: TC001  # likewise

K, C, BINS, SIZE = 1000, 256, 49, (200, 336)
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
KINDS = {"16 bits": torch.bfloat16, "float32": torch.float32, "float64": torch.float64, "fixed": torch.float32}


def adaptive() -> tuple[float, float]:
    """Samples and distinct pixels of a bin, on average, for the boxes of benchmarks/roi_pool.py: 5 to 25 pixels."""
    torch.manual_seed(0)
    side = torch.exp(torch.rand(100_000, 2) * 1.6 + 3) / 4 / math.isqrt(BINS)
    samples = side.ceil()
    return float(samples.prod(1).mean()), float((samples + 1).prod(1).mean())


def loop(cubin: Cubin) -> int:
    """Instructions of the innermost loop that reads or adds to pixels: a thread's work on a sample."""
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", cubin.sass)
    best = 10**9
    for address, text in code:
        if target := re.search(r"BRA.*?(0x[0-9a-f]+)", text):
            first, last = int(target[1], 16), int(address, 16)
            inside = [t for a, t in code if first <= int(a, 16) <= last]
            if first < last and sum("LDG" in t or "RED" in t for t in inside) >= 4:
                best = min(best, len(inside))
    return best


def bounds(chip: Chip, launch: Launch, samples: float, pixels: float) -> dict[str, float]:
    """Seconds that each resource needs by itself, for so many samples of a bin that blend so many distinct pixels."""
    block, name = launch.block, launch.kernel.__name__
    size = launch.arguments["output" if name == "pool" else "grad_output"].element_size()
    elements, channels = K * BINS * C, block.channels / 32  # of the output; of a thread
    spread = name == "input_gradient"
    cubin = compiled(launch, chip.architecture, block)
    features = C * SIZE[0] * SIZE[1] * (4 if spread else size)
    return {
        "instructions": elements * samples / channels * loop(cubin) / chip.lanes,
        "L1": 0.0 if spread else 4 * size * elements * samples / chip.lanes,
        # Additions all go to L2; of what is read, L1 keeps what a bin reads again.
        "L2": elements * (4 * 4 * samples if spread else size * pixels) / chip.l2,
        "memory": (features + elements * size + K * BINS * 12) / chip.memory,
    }


def roofline() -> None:
    resources = ("instructions", "L1", "L2", "memory")
    header("chip", "dtype", "samples of a bin", "kernel", "block", "programs", *resources, "bound")
    for chip in CHIPS:
        for kind, dtype in DTYPES.items():
            for name, (samples, pixels) in {"2x2": (4.0, 9.0), "adaptive": adaptive()}.items():
                for launch in pooling_launches(chip.architecture, dtype):
                    times = bounds(chip, launch, samples, pixels)
                    worst = max(times, key=lambda resource: times[resource])
                    print(
                        f"| {chip.name} | {kind} | {name}: {samples:.1f} | {launch.kernel.__name__} "
                        f"| {_name(launch.block)} | {launch.programs(launch.block)} "
                        f"| {' | '.join(f'{1e6 * t:.0f} µs' if t else '-' for t in times.values())} | {worst} |",
                        flush=True,
                    )


def _name(block: Block) -> str:
    return f"{block.positions}x{block.channels}, {block.warps} warp{'s' * (block.warps > 1)}"


def resources() -> None:
    header("kernel", "sums", "block", "sm", "registers", "spilled", "shared memory", "loads", "atomics", "loop")
    kernels = ("pool", "bin_gradients", "input_gradient")
    for (kernel, kind), by_architecture in TABLE.items():
        for architecture in (80, 90, 100):
            launch = pooling_launches(architecture, KINDS[kind], fixed=kind == "fixed")[kernels.index(kernel)]
            for block in by_architecture[max(least for least in by_architecture if least <= architecture)]:
                cubin = compiled(launch, architecture, block)
                atomics = {name.split(".FTZ")[0]: n for name, n in cubin.instructions.items() if name.startswith("RED")}
                print(
                    f"| {kernel} | {kind} | {_name(block)} | {architecture} | {cubin.usage['REG']} "
                    f"| {cubin.usage['STACK'] + cubin.usage['LOCAL']} | {cubin.shared / 1024:.1f} KiB "
                    f"| {cubin.count(r'LDG.*[.]128')} | {listed(atomics)} | {loop(cubin)} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("roofline", "resources"))
    {"roofline": roofline, "resources": resources}[parser.parse_args().table]()
