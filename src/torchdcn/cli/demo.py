"""``torchdcn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import console, verb
from .options import Device  # noqa: TC001  # typer reads the annotations when it runs


@verb("demo", example="torchdcn demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    device: Device = None,
) -> None:
    """Draws scenes, trains on them, evaluates, and writes a report: the whole path in a few minutes, offline."""
    from ..demo import run_demo

    run_demo(out, console(), device)
