"""How fast detectors are and how much memory training takes, beside the same ones without deformable layers.

Weights are random, so what depends on what they have learned is set: features are normalised by the picture's own
statistics, offsets come from N(0, 2) pixels, and all contenders get the same proposals and the same detections
(:mod:`torchdcn.bench.predictions`). Models of one kind run in turn, round after round, so their ratios hold where
absolute times don't.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..weights.released import PUBLISHED
from .detectors import Contender, autocast, build_detector, calibrate_random_weights, draw_image, group_contenders
from .models_memory import training_memory
from .parts import PARTS, REST, Counts, PartTimer
from .predictions import draw_targets, fix_predictions
from .timing import measure_times, thread_count, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DETECTION, TRAINING = "detection", "training step"


@dataclass(frozen=True)
class DetectorTimes:
    """Contenders of one kind that ran in turn, detecting or in a training step.

    Attributes:
        what: ``"detection"`` or ``"training step"``.
        amp: Mixed precision, or ``"none"``.
        counts: What goes through each of them.
        times: Seconds of each contender in every round; the one without deformable layers comes first.
        parts: The same for each part, by contender. What is left of the whole is ``"rest"``.
    """

    what: str
    amp: str
    counts: Counts
    times: dict[str, list[float]]
    parts: dict[str, dict[str, list[float]]]

    @property
    def regular(self) -> str:
        """The contender without deformable layers."""
        return next(iter(self.times))

    @property
    def seconds(self) -> dict[str, float]:
        """The median of each contender."""
        return {name: statistics.median(times) for name, times in self.times.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Over the one without deformable layers, in the same rounds."""
        return {name: seconds / self.seconds[self.regular] for name, seconds in self.seconds.items()}

    @property
    def part_seconds(self) -> dict[str, dict[str, float]]:
        """The median of each part, by contender."""
        return {
            name: {part: statistics.median(times) for part, times in parts.items()}
            for name, parts in self.parts.items()
        }

    def to_json(self, name: str) -> dict[str, Any]:
        """One contender's figures, for a file."""
        seconds, regular = self.part_seconds[name], self.part_seconds[self.regular]
        parts = {}
        for part, times in self.parts[name].items():
            ratio = {} if part == REST else {"x_regular": seconds[part] / regular[part]}  # of the rest, only noise
            parts[part] = {"seconds": seconds[part], **ratio, "seconds_by_round": times}
        return {
            "seconds": self.seconds[name],
            "x_regular": self.ratios[name],
            "seconds_by_round": self.times[name],
            "counts": asdict(self.counts),
            "parts": parts,
        }


@dataclass(frozen=True)
class ModelFigures:
    """What :func:`bench_models` found.

    Attributes:
        groups: Contenders of one kind each, the one without deformable layers first.
        detection: Times of each group.
        training: The same for training steps; empty where they weren't measured.
        train_bytes: Memory of a training step, or None where it can't be measured.
    """

    groups: list[list[Contender]]
    detection: list[DetectorTimes] = field(default_factory=list)
    training: list[DetectorTimes] = field(default_factory=list)
    train_bytes: dict[Contender, int | None] = field(default_factory=dict)

    def to_json(self) -> list[dict[str, Any]]:
        """All figures of each contender, for a file."""
        found = []
        for index, group in enumerate(self.groups):
            for one in group:
                published = None if one.regular else PUBLISHED.get(one.name)
                detection = self.detection[index].to_json(str(one))
                found.append(
                    {"name": one.name, "regular": one.regular, "amp": one.amp, "fps": 1 / detection["seconds"]}
                    | detection
                    | {"training_step": self.training[index].to_json(str(one)) if self.training else None}
                    | {"train_bytes": self.train_bytes.get(one)}
                    | {"published_on_v100": asdict(published) if published else None}
                )
        return found


class DetectorRun:
    """A contender that can be called in turn with others, and remembers the parts of each call.

    Args:
        contender: The model; it detects or trains by the mode that it is in.
        size: Height and width of the picture.
        device: ``"cpu"`` or a CUDA device.
    """

    def __init__(self, contender: Contender, size: tuple[int, int], device: str = "cpu") -> None:
        self.model = build_detector(contender, size, device)
        self.amp, self.size, self.device = contender.amp, size, device
        self.image, self.target = draw_image(size, device), draw_targets(size, device)
        calibrate_random_weights(self.model.backbone, self.image)
        fix_predictions(self.model, size)
        self.timer = PartTimer(self.model, wait_for(torch.device(device)))
        self.parts: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Takes a training step, but for the optimizer's; or goes from a resized picture to masks at its size."""
        if self.model.training:
            self._train()
        else:
            self._detect()
        self.parts.append(self.timer.seconds)

    def _train(self) -> None:
        torch.manual_seed(0)  # the same proposals are sampled for every contender

        def losses() -> Any:
            with autocast(self.amp, self.device):
                return self.model([self.image[0]], [dict(self.target)])

        self.timer.train(losses)
        self.model.zero_grad()

    def _detect(self) -> None:
        def detect() -> Any:
            with torch.inference_mode(), autocast(self.amp, self.device):
                return self.model([self.image[0]], original_sizes=[self.size], mask_threshold=0.5)

        self.timer.detect(detect)


def time_detectors(runs: dict[str, DetectorRun], rounds: int, training: bool) -> DetectorTimes:
    """Times contenders of one kind in turn.

    Args:
        runs: By name, the one without deformable layers first.
        rounds: See :func:`~torchdcn.bench.timing.measure_times`.
        training: A training step rather than detection.

    Raises:
        RuntimeError: Their numbers of proposals or detections differ.
    """
    for run in runs.values():
        run.model.train(training)
        run.parts.clear()
    first = next(iter(runs.values()))
    times = measure_times(runs, rounds, wait_for(torch.device(first.device)))
    parts = {name: _parts_by_round(runs[name].parts[1:], whole) for name, whole in times.items()}
    counts = {name: run.timer.counts for name, run in runs.items()}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"contenders don't have the same to do: {counts}")
    return DetectorTimes(TRAINING if training else DETECTION, first.amp, first.timer.counts, times, parts)


def _parts_by_round(calls: Sequence[dict[str, float]], whole: Sequence[float]) -> dict[str, list[float]]:
    """The parts that this kind of detector has, and what is left of the whole."""
    found = {part: [call[part] for call in calls] for part in PARTS if any(call[part] for call in calls)}
    return found | {REST: [seconds - sum(call.values()) for seconds, call in zip(whole, calls, strict=True)]}


def bench_models(
    names: Sequence[str],
    *,
    size: tuple[int, int] = (800, 1344),
    rounds: int = 5,
    train: bool = True,
    batch: int = 2,
    threads: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> ModelFigures:
    """Times detection and training steps with their parts, and measures the memory of a training step.

    Args:
        names: Models of the zoo; each runs beside what it would be without deformable layers.
        size: Height and width of the picture, as the network sees it.
        rounds: See :func:`~torchdcn.bench.timing.measure_times`.
        train: Whether to measure training too.
        batch: Pictures of the training step whose memory is measured. Times are those of one picture.
        threads: Of torch; by default its present number.
        device: ``"cpu"`` or a CUDA device. There each part ends with a wait for the device.
        progress: Called with (done, in all).

    Raises:
        ValueError: There is no such model, or no rounds.

    Example:
        >>> from torchdcn.bench.models import bench_models
        >>> names = ["faster_rcnn_r18_fpn_mdconv_c3-c5"]
        >>> found = bench_models(names, size=(64, 96), rounds=1, train=False)
        >>> sorted(found.detection[0].ratios)
        ['faster_rcnn_r18_fpn', 'faster_rcnn_r18_fpn_mdconv_c3-c5']
        >>> found.detection[0].counts
        Counts(proposals=1000, boxes=1000, masks=0, detections=100)
    """
    figures = ModelFigures(group_contenders(names, device))
    contenders = [one for group in figures.groups for one in group] if train else []
    total = len(figures.groups) * (1 + train) + len(contenders)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    threads = threads or torch.get_num_threads()
    with thread_count(threads):
        for group in figures.groups:
            runs = {str(one): DetectorRun(one, size, device) for one in group}
            figures.detection.append(time_detectors(runs, rounds, training=False))
            advance()
            if train:
                figures.training.append(time_detectors(runs, rounds, training=True))
                advance()
            del runs  # before the next group is built
    for one in contenders:
        figures.train_bytes[one] = training_memory(one, size, batch, threads, device)
        advance()
    return figures
