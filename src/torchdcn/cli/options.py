"""Options that several verbs have."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated

import typer

from .app import bad_usage

if TYPE_CHECKING:
    from collections.abc import Sequence

AMP = ("none", "bf16", "fp16")

Amp = Annotated[str, typer.Option(help="Mixed precision: none, bf16, fp16 (CUDA); bf16 pays on CPUs that have it.")]


def one_of(value: str, known: Sequence[str], option: str) -> None:
    """Ends the command as bad usage, with the nearest name, if a value isn't one of those known."""
    if value not in known:
        close = difflib.get_close_matches(value, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        bad_usage(f"{option}: expected one of {', '.join(known)}, got {value!r}{hint}")
