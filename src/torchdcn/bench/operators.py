"""How fast an operator is, beside the dense convolution of the same shape and beside its peers."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .contenders import DENSE, Shape, operator_contenders
from .memory import Job, extra_memory
from .timing import measure_times, thread_count, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each contender's time over that of the dense convolution in its faster layout.

    Example:
        >>> from torchdcn.bench.operators import ratios
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
        rounds: See :func:`torchdcn.bench.timing.measure_times`.
        peers: Whether torchvision and onnxruntime take part.
        progress: Called with (done, in all).

    Example:
        >>> from torchdcn.bench.contenders import Shape
        >>> from torchdcn.bench.operators import bench_operator
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
