"""``torchdcn bench models``."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import bad_usage, verb
from .bench import bar, bench

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.models_bench import Contender, Figures

WIDTH = 100  # also without a terminal, so that a log or a document takes it as it is
SIZE = "800x1344"


@verb("models", example="torchdcn bench models --models mask_rcnn_r50_fpn_mdconv_c3-c5 --rounds 3", group=bench)
def bench_models(
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A model, or several with commas between. By default those of the published table."
        ),
    ] = None,
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the picture, as the network sees it.")] = SIZE,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 5,
    train: Annotated[bool, typer.Option(help="Measure training, too.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Pictures of the training step whose memory is measured.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File that gets all figures.")] = None,
) -> None:
    """The model table's fps and training memory, measured here, beside the published ones and the regular networks."""
    import torch

    from ..evaluation import models_bench as measuring
    from ..evaluation.speed import machine
    from ..files import check_file, write_atomically
    from ..models.zoo import PUBLISHED
    from ..training.device import choose_device

    pixels = _size(size)
    place = str(choose_device(device))
    given = [name.strip() for text in models or [] for name in text.split(",") if name.strip()]
    names = given or list(PUBLISHED)
    measuring.groups_of(names, place)  # complains about a name before anything runs
    if json_file is not None:
        check_file(json_file, "json")
    threads = threads or torch.get_num_threads()
    with bar("measuring") as progress:
        found = measuring.bench_models(
            names, size=pixels, rounds=rounds, train=train, batch=batch, threads=threads, device=place,
            progress=progress,
        )  # fmt: skip
    command = _command(given, size, rounds, train, batch, device, threads)
    about = {**machine(place), "threads": str(threads), "again with": command}
    _show(found, size, batch, rounds, about)
    if json_file is not None:
        head = {"command": command, "machine": machine(place), "threads": threads, "size": pixels, "rounds": rounds}
        record = head | {"train_batch": batch} | _record(found)
        write_atomically(json_file, lambda file: file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8"))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    height, width = map(int, match.groups()) if match else (0, 0)
    if min(height, width) < 64:
        bad_usage(f"--size: expected height x width of at least 64 each, such as {SIZE}, got {text!r}")
    return height, width


def _command(models: list[str], size: str, rounds: int, train: bool, batch: int, device: str, threads: int) -> str:
    """The command line that gives these figures again, with ``--threads``, whose default is the machine's."""
    words = ["torchdcn", "bench", "models", *(word for name in models for word in ("--models", name))]
    words += ["--size", size, "--rounds", str(rounds)]
    words += ["--batch", str(batch)] if train else ["--no-train"]
    words += ["--device", device] if device != "cpu" else []
    return shlex.join([*words, "--threads", str(threads)])


def _show(found: Figures, size: str, batch: int, rounds: int, about: dict[str, str]) -> None:
    from rich.console import Console

    screen = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    screen.print(f"Detectors beside the same without deformable layers, a picture of {size}", style="bold")
    lines = [
        f"fps: from the resized picture to boxes and masks, batch 1, median of {_count(rounds, 'round')} in turn;",
        "random weights, offsets from N(0, 2) pixels, 300 pairs of box and class before NMS.",
        "x regular: time over that of the same network without deformable layers.",
    ]
    if found.train_bytes:
        lines += [
            f"train GB: peak of a training step of {_count(batch, 'picture')}, with weights, gradients, momentum."
        ]
    lines += ["published: mmdetection's figures on V100 GPUs (training: 2 pictures a GPU), not measured here."]
    screen.print("\n".join(lines), soft_wrap=True)
    screen.print(_detectors(found))
    if found.backbones:
        screen.print("Backbone and pyramid alone; training: forward and backward", style="bold")
        screen.print(_backbones(found))
    screen.print("\n".join(f"{name:16} {text}" for name, text in about.items()), soft_wrap=True)


def _table(*headers: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    return table


def _detectors(found: Figures) -> Table:
    from ..models.zoo import PUBLISHED

    train = ["\ntrain GB"] if found.train_bytes else []
    table = _table("", "here\nfps", "\nx regular", *train, "published\nfps", "\ntrain GB")
    for group, timed in zip(found.groups, found.detection, strict=True):
        for one in group:
            published = PUBLISHED.get("" if one.plain else one.name)
            memory = [_gigabytes(found.train_bytes[one])] if found.train_bytes else []
            table.add_row(
                str(one) + (f" ({one.amp})" if one.amp != "none" else ""),
                _digits(1 / timed.seconds[str(one)]),
                f"{timed.ratios[str(one)]:.2f}",
                *memory,
                f"{published.fps}" if published and published.fps else "-",
                f"{published.train_memory_gb}" if published else "-",
            )
        table.add_section()
    return table


def _backbones(found: Figures) -> Table:
    passes = list(dict.fromkeys(timed.what for timed in found.backbones))
    headers = [text for what in passes for text in (f"{_pass(what)}\nseconds", "\nx regular")]
    table = _table("", *headers)
    for first in (timed for timed in found.backbones if timed.what == passes[0]):
        same = [timed for timed in found.backbones if timed.amp == first.amp and timed.plain == first.plain]
        for name in first.times:
            cells = [cell for timed in same for cell in (_digits(timed.seconds[name]), f"{timed.ratios[name]:.2f}")]
            table.add_row(name + (f" ({first.amp})" if first.amp != "none" else ""), *cells)
        table.add_section()
    return table


def _pass(what: str) -> str:
    return "training" if "backward" in what else "forward"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _digits(number: float) -> str:
    """Three digits."""
    return f"{number:.{3 if number < 1 else 2 if number < 10 else 1}f}"


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f}"


def _record(found: Figures) -> dict[str, Any]:
    from dataclasses import asdict

    from ..models.zoo import PUBLISHED

    def detector(one: Contender, index: int) -> dict[str, Any]:
        timed = found.detection[index]
        published = PUBLISHED.get("" if one.plain else one.name)
        return {
            "name": one.name,
            "regular": one == found.groups[index][0],
            "amp": one.amp,
            "fps": 1 / timed.seconds[str(one)],
            "seconds": timed.seconds[str(one)],
            "x_regular": timed.ratios[str(one)],
            "seconds_by_round": timed.times[str(one)],
            "train_bytes": found.train_bytes.get(one),
            "published_on_v100": asdict(published) if published else None,
        }

    detectors = [detector(one, index) for index, group in enumerate(found.groups) for one in group]
    return {"detectors": detectors, "backbones": [timed.to_json() for timed in found.backbones]}
