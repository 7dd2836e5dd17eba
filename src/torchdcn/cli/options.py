"""Options that several verbs have."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from .app import bad_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

AMP = ("none", "bf16", "fp16")

Model = Annotated[
    str | None,
    typer.Option(help="Name of the model, see `torchdcn models`; by default the one that the weights file names."),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Weights file, or coco for the published ones; without one the weights are random."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default CUDA where there is one.")]
Amp = Annotated[str, typer.Option(help="Mixed precision: none, bf16, fp16 (CUDA); bf16 pays on CPUs that have it.")]


def one_of(value: str, known: Sequence[str], option: str) -> None:
    """Ends the command as bad usage, with the nearest name, if a value isn't one of those known."""
    if value not in known:
        close = difflib.get_close_matches(value, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        bad_usage(f"{option}: expected one of {', '.join(known)}, got {value!r}{hint}")


def model_of(model: str | None, weights: str | None, verb: str) -> str:
    """The model's name: the one given, or else the weights file's.

    Raises:
        OSError: There is no such file, or it can't be read.
        ValueError: It is no weights file, or there is no such model.
        typer.Exit: There is no name.
    """
    from ..models.zoo import settings_of
    from ..weights.messages import existing_file
    from ..weights.read import read_weights
    from ..weights.torchdcn_file import read_info

    path = None if weights in (None, "coco") else existing_file(str(weights))
    if model is not None:
        settings_of(model)  # complains
        return model
    if path is None:
        why = ", which a --weights file can stand in for" if weights is None else ": coco has weights of several models"
        bad_usage(f"Missing option '--model'{why}. (see torchdcn {verb} --help)")
    info = read_info(path) if path.suffix == ".safetensors" else read_weights(path).info
    if info is None:
        bad_usage(f"--model: {path} doesn't say which model it is of; give its name, see `torchdcn models`")
    return info.model


@contextmanager
def drawing(data: str, screen: Console) -> Iterator[Callable[[int, int], None]]:
    """For a data set that is drawn, or converted, at its first use: a bar, or one line where there is no terminal."""
    from ..training.progress import counter

    verb, things = ("Drawing", "scenes") if data == "synthetic" else ("Converting", "images")
    with counter(f"{verb.lower()} {things}", screen) as progress:
        told = screen.is_terminal

        def advance(done: int, total: int) -> None:
            nonlocal told
            if not told:
                screen.print(f"{verb} {total} {things}")
                told = True
            progress(done, total)

        yield advance
