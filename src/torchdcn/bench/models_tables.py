"""The tables of ``torchdcn bench models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..weights.released import PUBLISHED
from .parts import REST
from .tables import format_count, make_table, open_console, surroundings_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from .models import DetectorTimes, ModelFigures
    from .parts import Counts

WIDTH = 112  # of the parts beside the longest name


def show_models(found: ModelFigures, size: str, batch: int, rounds: int, about: Mapping[str, str]) -> None:
    """Prints what was measured, on what, and how to measure it again."""
    screen = open_console(WIDTH)
    screen.print(f"Detectors beside the same without deformable layers, a picture of {size}", style="bold")
    in_turn = f"{format_count(rounds, 'round')} in turn"
    lines = [
        f"fps: from the resized picture to boxes and masks, batch 1, median of {in_turn}.",
        "x regular: time over that of the same network without deformable layers.",
        "Random weights, offsets from N(0, 2) pixels; proposals and detections are drawn, the same for all.",
    ]
    if found.train_bytes:
        pictures = format_count(batch, "picture")
        lines.append(f"train GB: peak of a training step of {pictures}, with weights, gradients, momentum.")
    lines.append("published: mmdetection's figures on V100 GPUs (training: 2 pictures a GPU), not measured here.")
    screen.print("\n".join(lines), soft_wrap=True)
    screen.print(_detectors(found))
    for title, times in (
        ("Seconds of detection", found.detection),
        ("Seconds of a training step, forward and backward", found.training),
    ):
        for counts in dict.fromkeys(one.counts for one in times):
            screen.print(f"{title}, batch 1: {_counts_text(counts)}", style="bold", soft_wrap=True)
            screen.print(_parts([one for one in times if one.counts == counts]))
    screen.print(surroundings_text(about), soft_wrap=True)


def _counts_text(counts: Counts) -> str:
    words = [format_count(counts.proposals, "proposal")]
    if counts.detections:
        words.append(format_count(counts.detections, "detection"))
    else:
        words.append(f"{counts.boxes} boxes sampled")
    return ", ".join(words + [format_count(counts.masks, "mask")] * bool(counts.masks))


def _detectors(found: ModelFigures) -> Table:
    train = ["\ntrain GB"] if found.train_bytes else []
    table = make_table("", "here\nfps", "\nx regular", *train, "published\nfps", "\ntrain GB")
    for group, times in zip(found.groups, found.detection, strict=True):
        for one in group:
            published = None if one.regular else PUBLISHED.get(one.name)
            memory = [_gigabytes(found.train_bytes[one])] if found.train_bytes else []
            table.add_row(
                _label(str(one), one.amp),
                _digits(1 / times.seconds[str(one)]),
                f"{times.ratios[str(one)]:.2f}",
                *memory,
                f"{published.fps}" if published and published.fps else "-",
                f"{published.train_memory_gb}" if published else "-",
            )
        table.add_section()
    return table


def _parts(groups: Sequence[DetectorTimes]) -> Table:
    """A row of seconds for each contender, and of ratios for each that deforms."""
    table = make_table("", "whole", *(name.replace(" ", "\n") for name in groups[0].parts[groups[0].regular]))
    for times in groups:
        base = times.part_seconds[times.regular]
        for name, seconds in times.part_seconds.items():
            table.add_row(_label(name, times.amp), _digits(times.seconds[name]), *map(_digits, seconds.values()))
            if name != times.regular:
                ratios = ["-" if part == REST else f"{value / base[part]:.2f}" for part, value in seconds.items()]
                table.add_row("  x regular", f"{times.ratios[name]:.2f}", *ratios, style="green")
        table.add_section()
    return table


def _label(name: str, amp: str) -> str:
    return name + (f" ({amp})" if amp != "none" else "")


def _digits(number: float) -> str:
    """Three digits."""
    return f"{number:.{3 if number < 1 else 2 if number < 10 else 1}f}"


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f}"
