"""How fast an operator is, beside the dense convolution of the same shape and beside its peers.

Contenders run in turn, round after round, in one process: a machine that slows down slows all of them, so their ratios
hold where absolute times don't.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ops import instruction_set
from .contenders import DENSE, ONNXRUNTIME, OURS, RESNET50, SCALING, VARIED, Shape, operator_contenders
from .memory import Job, extra_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "DENSE",
    "OURS",
    "RESNET50",
    "SCALING",
    "VARIED",
    "Measurement",
    "Shape",
    "bench_operator",
    "geometric_means",
    "machine",
    "measure",
    "measure_times",
    "operator_contenders",
    "ratios",
    "thread_count",
    "wait_for",
    "with_memory",
]

PAUSE = 0.002  # seconds in which the threads that served the contender before fall asleep


def measure(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender: see :func:`measure_times`.

    Example:
        >>> from torchdcn.evaluation.speed import measure
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
        >>> from torchdcn.evaluation.speed import measure_times
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


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each contender's time over that of the dense convolution in its faster layout.

    Example:
        >>> from torchdcn.evaluation.speed import ratios
        >>> ratios({"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0})
        {'dense, contiguous': 2.0, 'dense, channels-last': 1.0, 'torchdcn, contiguous': 3.0}
    """
    base = min(time for name, time in seconds.items() if name.startswith(DENSE))
    return {name: time / base for name, time in seconds.items()}


@dataclass(frozen=True)
class Measurement:
    """One shape, forward or forward and backward: what each contender took."""

    shape: Shape
    training: bool
    dtype: str
    device: str
    threads: int
    times: dict[str, list[float]]  # seconds of each round
    absent: dict[str, str] = field(default_factory=dict)  # why a peer isn't there
    extra_bytes: dict[str, int | None] = field(default_factory=dict)  # beyond inputs, outputs and gradients

    @property
    def seconds(self) -> dict[str, float]:
        """The median of each contender."""
        return {name: statistics.median(times) for name, times in self.times.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Over the dense convolution in its faster layout."""
        return ratios(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        contenders = {
            name: {
                "milliseconds": 1000 * seconds,
                "x_dense": self.ratios[name],
                "milliseconds_by_round": [1000 * one for one in self.times[name]],
                "extra_bytes": self.extra_bytes.get(name),
            }
            for name, seconds in self.seconds.items()
        }
        return {
            "shape": asdict(self.shape) | {"padding": self.shape.padding, "name": str(self.shape)},
            "pass": "forward + backward" if self.training else "forward",
            "dtype": self.dtype,
            "device": self.device,
            "threads": self.threads,
            "contenders": contenders,
            "absent": self.absent,
        }


def bench_operator(
    shapes: Sequence[Shape],
    *,
    dtype: str = "float32",
    device: str = "cpu",
    threads: Sequence[int] = (),
    passes: Sequence[bool] = (False, True),
    rounds: int = 15,
    peers: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> list[Measurement]:
    """Times deformable convolution, for every number of threads, shape and pass in turn.

    Args:
        shapes: What to convolve.
        dtype: Of all tensors, by its name in torch.
        device: Where to run.
        threads: Numbers of threads, of torch and of onnxruntime; by default torch's present one.
        passes: False for forward, True for forward and backward.
        rounds: See :func:`measure_times`.
        peers: Whether torchvision and onnxruntime take part.
        progress: Called with (done, in all).

    Example:
        >>> from torchdcn.evaluation.speed import Shape, bench_operator
        >>> forward, _ = bench_operator([Shape(8, 5, 6)], rounds=1, peers=False)
        >>> sorted(forward.seconds)
        ['dense, channels-last', 'dense, contiguous', 'torchdcn, channels-last', 'torchdcn, contiguous']
    """
    place = torch.device(device)
    found: list[Measurement] = []
    counts = threads or [torch.get_num_threads()]
    total = len(counts) * len(shapes) * len(passes)
    for count in counts:
        with thread_count(count):
            for shape in shapes:
                for training in passes:
                    if progress:
                        progress(len(found), total)
                    lineup = operator_contenders(shape, training, getattr(torch, dtype), peers, place)
                    times = measure_times(lineup.calls, rounds, wait_for(place))
                    found.append(Measurement(shape, training, dtype, device, count, times, lineup.absent))
    return found


def with_memory(
    measurements: Sequence[Measurement], progress: Callable[[int, int], object] | None = None
) -> list[Measurement]:
    """Adds to each measurement the memory its contenders take, where that can be measured.

    All of them must have been made on one device, with the same number of threads.
    """
    if not measurements:
        return []
    jobs = [Job(name, m.shape, m.training, m.dtype) for m in measurements for name in m.times]
    first = measurements[0]
    found = iter(extra_memory(jobs, first.threads, first.device, progress))
    return [
        Measurement(
            m.shape, m.training, m.dtype, m.device, m.threads, m.times, m.absent, {n: next(found) for n in m.times}
        )
        for m in measurements
    ]


def geometric_means(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Of each contender's ratios, for those that took part in every measurement."""
    names = [name for name in measurements[0].times if all(name in m.times for m in measurements)]
    return {name: math.prod(m.ratios[name] for m in measurements) ** (1 / len(measurements)) for name in names}


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
        >>> from torchdcn.evaluation.speed import machine
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
