"""The record of a run: ``metrics.jsonl``, TensorBoard events, and a progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

NAME = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 20  # without a terminal, which would have a bar


class Record:
    """Writes the run's figures as they come; a context manager.

    Args:
        folder: Gets ``metrics.jsonl`` and the events file.
        console: Shows a bar if it is a terminal, else a line every 20 seconds.
        steps: Steps of the whole run.
        done: Steps that were done before the run was resumed. Lines of later steps, written after the last checkpoint,
            are dropped: those steps are done again.
    """

    def __init__(self, folder: Path, console: Console, steps: int, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, since it takes a second

        self.path = folder / NAME
        self.console = console
        self.steps = steps
        self._drop_lines_after(done)
        self.events = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=600,  # rich's default, 30 s, is less than a step of mimicking may take on a CPU
        )
        self.task = self.progress.add_task("training", total=steps, completed=done, figures="")
        self._start, self._first, self._printed = time.monotonic(), done, time.monotonic()

    def __enter__(self) -> Record:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal may be gone
            self.progress.stop()
        try:
            self.events.close()
        except OSError:  # a full disk, say; the error that has ended the run is the one to report
            if error is None:
                raise

    def advance(self, epoch: str, step: int) -> None:
        """Moves the bar to a step; ``epoch`` is its label."""
        self.progress.update(self.task, completed=step, description=epoch)

    def losses(self, epoch: str, step: int, figures: Mapping[str, float]) -> None:
        """Records losses, learning rate and speed at a step, with the peak memory so far."""
        memory = peak_memory()
        figures = {**figures, **({"memory_mib": round(memory / 2**20)} if memory else {})}
        self._write({"kind": "train", "step": step, **figures})
        for name, value in figures.items():
            self.events.add_scalar(f"train/{name}", value, step)
        text = f"loss {figures['loss']:.3f} · lr {figures['lr']:.1e} · {figures['images_per_s']:.1f} images/s"
        if memory:
            text += f" · {memory / 2**30:.1f} GiB"
        self.progress.update(self.task, figures=text)
        last = step == self.steps
        if not self.console.is_terminal and (last or time.monotonic() - self._printed > SECONDS_BETWEEN_LINES):
            left = (time.monotonic() - self._start) / max(1, step - self._first) * (self.steps - step)
            minutes, seconds = divmod(round(left), 60)
            self.console.print(
                f"{epoch} · step {step}/{self.steps} · {text} · {minutes}:{seconds:02d} left", highlight=False
            )
            self._printed = time.monotonic()

    def evaluation(self, epoch: int, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Records an evaluation on val."""
        self._write({"kind": "val", "epoch": epoch, "step": step, **metrics})
        for kind, figures in metrics.items():
            for name, value in figures.items():
                self.events.add_scalar(f"val/{kind}/{name}", value, step)

    def figures(self, step: int) -> dict[str, dict[str, float]]:
        """The figures of the evaluation after a step; an empty dict if there was none."""
        lines = [line for line in read_record(self.path) if line["kind"] == "val" and line["step"] == step]
        return {kind: figures for kind, figures in lines[-1].items() if isinstance(figures, dict)} if lines else {}

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Records pictures ``[H, W, 3]`` by name, in the TensorBoard events only."""
        for name, picture in pictures.items():
            self.events.add_image(f"val/{name}", picture, step, dataformats="HWC")

    def skipped(self, step: int, path: str, reason: str) -> None:
        """Records an image that could not be read."""
        self._write({"kind": "skipped", "step": step, "image": path, "reason": reason})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_lines_after(self, step: int) -> None:
        kept = [line for line in read_record(self.path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write_text(text, encoding="utf-8"))


def peak_memory() -> int | None:
    """The peak memory of this process in bytes: the GPU's if it uses one, else the host's; None if not known."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Means:
    """Averages over the images since the last :meth:`pop`."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)  # images, for each value: some steps lack some values
        self._images, self._start = 0, time.perf_counter()

    def add(self, values: Mapping[str, float], images: int) -> None:
        """Adds the values of a step over ``images`` images."""
        self._images += images
        for name, value in values.items():
            self._sums[name] += value * images
            self._counts[name] += images

    def pop(self) -> dict[str, float]:
        """Gives the averages and ``images_per_s`` and starts again; an empty dict if there were no images."""
        if not self._images:
            return {}
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        means["images_per_s"] = self._images / (time.perf_counter() - self._start)
        self._clear()
        return means


def read_record(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line that a killed process left unfinished is left out.

    Example:
        >>> from torchdcn.training import read_record
        >>> read_record("no/such/run/metrics.jsonl")
        []
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = map(_parse_line, path.read_text(encoding="utf-8").splitlines())
    return list(takewhile(bool, lines))


def _parse_line(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) else {}
