"""Times calls in turn, and says on what machine.

Contenders run in turn, round after round, in one process: a machine that slows down slows all of them, so their ratios
hold where absolute times don't.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..ops import instruction_set
from .contenders import ONNXRUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PAUSE = 0.002  # seconds in which the threads that served the contender before fall asleep


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender: see :func:`measure_times`.

    Example:
        >>> from torchdcn.bench.timing import measure
        >>> sorted(measure({"a": lambda: sum(range(9)), "b": lambda: None}, rounds=3))
        ['a', 'b']
    """
    return {name: statistics.median(times) for name, times in measure_times(contenders, rounds).items()}


def measure_times(
    contenders: Mapping[str, Callable[[], object]], rounds: int, wait: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each contender in every one of so many rounds, after one that isn't counted.

    A contender that takes more than a tenth of a second and five times as long as the fastest takes part in the first,
    the middle and the last round only.

    Args:
        contenders: Called in turn.
        rounds: How often.
        wait: Called before the clock is read, to wait for what runs on a device.

    Raises:
        ValueError: There are no rounds.

    Example:
        >>> from torchdcn.bench.timing import measure_times
        >>> [len(times) for times in measure_times({"a": lambda: None}, rounds=3).values()]
        [3]
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for_slow = {1, (1 + rounds) // 2, rounds}
    slow: set[str] = set()
    for run in range(rounds + 1):
        for name, contender in contenders.items():
            if name in slow and run not in for_slow:
                continue
            if name == ONNXRUNTIME:  # it has threads of its own
                time.sleep(PAUSE)
            wait()
            start = time.perf_counter()
            contender()
            wait()
            if run:
                seconds[name].append(time.perf_counter() - start)
        if run == 1:
            fastest = min((times[0] for times in seconds.values()), default=0.0)
            slow = {name for name, times in seconds.items() if times[0] > max(0.1, 5 * fastest)}
    return seconds


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Lets torch have so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wait_for(device: torch.device) -> Callable[[], object]:
    """What to call before the clock is read."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def machine(device: str = "cpu") -> dict[str, str]:
    """What figures are taken on, besides the number of threads.

    Example:
        >>> from torchdcn.bench.timing import machine
        >>> list(machine())
        ['CPU', 'cores', 'instruction set', 'torch', 'system']
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        ours = instruction_set()
    except RuntimeError:
        ours = "none: the slow reference runs"
    found = {
        "CPU": _processor(),
        "cores": str(cores),
        "instruction set": f"{ours} (torch: {torch.backends.cpu.get_cpu_capability()})",
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    if device.startswith("cuda"):
        found = {"GPU": torch.cuda.get_device_name(device), **found}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
