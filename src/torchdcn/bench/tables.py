"""The table of ``torchdcn bench ops``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .contenders import DENSE, OURS, Shape
from .operators import Measurement, geometric_means
from .timing import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH = 100  # also without a terminal, so that a log or a document takes it as it is
BASE = f"{OURS}, channels-last"
OTHER = f"{OURS}, contiguous"


def open_console(width: int = WIDTH) -> Console:
    """Where tables up to that width are printed. A narrower terminal folds their lines: rich would cut numbers off."""
    return Console(highlight=False, markup=False, width=max(width, shutil.get_terminal_size().columns))


def make_table(*headers: str) -> Table:
    """A table without rows; all columns but the first are numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    return table


def surroundings_text(about: Mapping[str, str]) -> str:
    """What stands under a table: on what it was measured, and how to measure it again."""
    return "\n".join(f"{name:16} {text}" for name, text in about.items())


def format_count(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {noun}{'s' * (number > 1)}"


def show_operators(suite: str, found: Sequence[Measurement], rounds: int, command: str) -> None:
    """Prints what was measured, on what, and how to measure it again."""
    screen = open_console()
    first = found[0]
    threads = f", {format_count(first.threads, 'thread')}" if suite != "scaling" else ""
    screen.print(
        f"Deformable convolution beside the dense convolution of the same shape, {first.dtype}{threads}", style="bold"
    )
    lines = [
        "Mask given, offsets from N(0, 2) pixels; 3x3, batch 1 and padded to the same size unless noted.",
        f"ms: median of {format_count(rounds, 'round')} in turn (3 where slow);"
        " x dense: over dense convolution's faster layout.",
    ]
    notes = ["fwd+bwd: with all gradients"] * any(m.training for m in found)
    notes += ["memory: at a first call's peak, beyond inputs, outputs, gradients"] * any(m.extra_bytes for m in found)
    if notes:
        lines.append(f"{'; '.join(notes)}.")
    screen.print("\n".join(lines), soft_wrap=True)
    tables = {"resnet50": _beside_all, "shapes": _by_shape, "scaling": _by_threads}
    screen.print(tables[suite](found))
    for name, reason in {name: reason for m in found for name, reason in m.absent.items()}.items():
        screen.print(f"no {name}: {reason}", soft_wrap=True)
    screen.print(surroundings_text({**machine(first.device), "again with": command}), soft_wrap=True)


def _passes(found: Sequence[Measurement]) -> list[bool]:
    return sorted({m.training for m in found})


def _grouped(found: Sequence[Measurement]) -> dict[tuple[Shape, int], dict[bool, Measurement]]:
    """By shape and threads, then by pass."""
    rows: dict[tuple[Shape, int], dict[bool, Measurement]] = {}
    for m in found:
        rows.setdefault((m.shape, m.threads), {})[m.training] = m
    return rows


def _headers(passes: Sequence[bool], *columns: str) -> list[str]:
    """The columns of each pass, the first under its name."""
    names = ["fwd+bwd" if training else "forward" for training in passes]
    return [f"{name if i == 0 else ''}\n{column}" for name in names for i, column in enumerate(columns)]


def _beside_all(found: Sequence[Measurement]) -> Table:
    """A block of contenders for each shape, and their geometric means."""
    memory = any(m.extra_bytes for m in found)
    passes = _passes(found)
    table = make_table("", *_headers(passes, "ms", "x dense", *["memory"] * memory))
    for (shape, _), by_pass in _grouped(found).items():
        table.add_row(str(shape), style="bold")
        for name in {name: None for m in by_pass.values() for name in m.times}:
            cells = [cell for training in passes for cell in _cells(by_pass[training], name, memory)]
            table.add_row(f"  {name}", *cells, style="green" if name == BASE else None)
        table.add_section()
    if len({m.shape for m in found}) > 1:
        means = {training: geometric_means([m for m in found if m.training == training]) for training in passes}
        table.add_row("geometric mean", style="bold")
        for name in {name: None for by_name in means.values() for name in by_name}:
            cells = []
            for training in passes:
                cells += ["", _ratio(means[training].get(name)), *([""] if memory else [])]
            table.add_row(f"  {name}", *cells, style="green" if name == BASE else None)
    return table


def _cells(m: Measurement, name: str, memory: bool) -> list[str]:
    if name not in m.times:
        return ["-", "-"] + ["-"] * memory
    cells = [_milliseconds(m.seconds[name]), _ratio(m.ratios[name])]
    return [*cells, _bytes(m.extra_bytes.get(name))] if memory else cells


def _by_shape(found: Sequence[Measurement]) -> Table:
    """A row for each shape."""
    columns = ("dense\nms", "ours\nms", "ours\nx dense", "contig.\nx dense")
    table = make_table("", *_headers(_passes(found), *columns))
    for (shape, _), by_pass in _grouped(found).items():
        cells = []
        for _, m in sorted(by_pass.items()):
            cells += [_dense(m), _milliseconds(m.seconds[BASE]), _ratio(m.ratios[BASE]), _ratio(m.ratios[OTHER])]
        table.add_row(str(shape), *cells)
    return table


def _by_threads(found: Sequence[Measurement]) -> Table:
    """A block of numbers of threads for each shape, with the speed-up over the first of them."""
    passes = _passes(found)
    table = make_table("", "\n\nthreads", *_headers(passes, "dense\nms", "ours\nms", "ours\nx dense", "speed-\nup"))
    rows = _grouped(found)
    for shape in {shape: None for shape, _ in rows}:
        counts = [threads for other, threads in rows if other == shape]
        for threads in counts:
            cells = []
            for training in passes:
                m, fewest = rows[shape, threads][training], rows[shape, counts[0]][training]
                faster = fewest.seconds[BASE] / m.seconds[BASE]
                cells += [_dense(m), _milliseconds(m.seconds[BASE]), _ratio(m.ratios[BASE]), f"{faster:.2f}"]
            table.add_row(str(shape) if threads == counts[0] else "", str(threads), *cells)
        table.add_section()
    return table


def _dense(m: Measurement) -> str:
    return _milliseconds(min(seconds for name, seconds in m.seconds.items() if name.startswith(DENSE)))


def _milliseconds(seconds: float) -> str:
    """Three digits."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:.{3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0}f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f} MB"
