"""Errors in the command line's words: what a function calls ``device:`` is ``--device:`` to who typed that."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from typer.models import ArgumentInfo

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterable, Iterator, Mapping

PHRASES = {
    "list_models() names them all": "`torchdcn models` lists them",
    "give weights= or weights_backbone=": "give --weights or --weights-backbone",
}


def flags_of(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """What each of a verb's parameters is called on the command line."""
    flags = {}
    for parameter in parameters:
        info: Any = parameter.annotation.__metadata__[0]
        name = parameter.name.rstrip("_")
        if isinstance(info, ArgumentInfo):
            flags[name] = (info.metavar or name.upper()).rstrip(".")
            flags[flags[name].lower()] = flags[name]  # IMAGE... are images, and one of them is an image
        else:
            written = [text for text in info.param_decls or () if text.startswith("--")]
            flags[name] = written[0].split("/")[0] if written else f"--{name.replace('_', '-')}"
    for name in {"model", "models"} & flags.keys():
        flags["name"] = flags[name]  # as create_model calls it
    return flags


@contextmanager
def said_as(flags: Mapping[str, str]) -> Iterator[None]:
    """Has an error from inside that begins with an argument's name begin with its flag; the innermost one decides."""
    try:
        yield
    except Exception as error:
        name, colon, rest = str(error).partition(": ")
        if colon and name in flags and not hasattr(error, "said"):
            error.said = f"{flags[name]}: {rest}"  # type: ignore[attr-defined]
        raise


def said(error: Exception) -> str:
    """An error's text in one line."""
    text = " ".join(getattr(error, "said", str(error)).split())
    for python, shell in PHRASES.items():
        text = text.replace(python, shell)
    return text
