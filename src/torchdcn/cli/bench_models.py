"""``torchdcn bench models``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import Annotated

import typer

from .app import bad_usage, verb
from .bench import bar, bench

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

    from ..bench import models as measuring
    from ..bench.detectors import group_contenders
    from ..bench.models_tables import show_models
    from ..bench.timing import machine
    from ..files import check_file, write_atomically
    from ..training.device import choose_device
    from ..weights.released import PUBLISHED

    pixels = _size(size)
    place = str(choose_device(device))
    given = [name.strip() for text in models or [] for name in text.split(",") if name.strip()]
    if models and not given:
        bad_usage(f"--models: expected a model's name, got {', '.join(map(repr, models))}; torchdcn models lists them")
    names = given or list(PUBLISHED)
    group_contenders(names, place)  # complains about a name before anything runs
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
    show_models(found, size, batch, rounds, about)
    if json_file is not None:
        head = {"command": command, "machine": machine(place), "threads": threads, "size": pixels, "rounds": rounds}
        record = head | {"train_batch": batch, "detectors": found.to_json()}
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
