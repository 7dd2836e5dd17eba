"""What the messages about weights have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def existing_file(path: str | Path, argument: str = "weights") -> Path:
    """The path, of a file that is there.

    Raises:
        FileNotFoundError: It isn't.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}")
    return path


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters of it, or the error's class."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def shorten_list(names: Sequence[str], limit: int = 10) -> str:
    """The first few of a list of names, and how many more there are.

    Example:
        >>> from torchdcn.weights.messages import shorten_list
        >>> shorten_list(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def describe_mismatch(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Which tensors of a state dict are missing, unknown or of another shape; empty if none is.

    ``num_batches_tracked`` is never missing: files from before PyTorch 0.4.1 have none, and nothing reads it.
    """
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in expected]
    shapes = [
        f"{key} {list(value.shape)} instead of {list(expected[key].shape)}"
        for key, value in given.items()
        if key in expected and value.shape != expected[key].shape
    ]
    faults = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
    return "; ".join(f"{what}: {shorten_list(names)}" for what, names in faults if names)
