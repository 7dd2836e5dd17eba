"""Data sets in COCO's format, their way to the model, and the scenes that the project draws itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .coco import CocoDetection
from .synthetic import VERSION, make_synthetic
from .transforms import collate, eval_transforms, train_transforms

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CocoDetection",
    "collate",
    "eval_transforms",
    "make_synthetic",
    "open_dataset",
    "synthetic_folder",
    "train_transforms",
]

DEFAULT = {"train": 600, "val": 100, "size": 160, "seed": 0, "difficulty": 0.3}
"""The settings of the data set called ``synthetic``: those of :func:`make_synthetic` without arguments."""


def open_dataset(
    data: str | Path,
    split: str = "train",
    transforms: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None,
    *,
    crowds: bool = False,
    masks: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CocoDetection:
    """Opens a folder in COCO's format, or the embedded data set, which is drawn at its first use.

    Args:
        data: A folder, or ``"synthetic"``: :func:`make_synthetic` with its defaults, kept in
            ``$XDG_CACHE_HOME/torchdcn`` or ``~/.cache/torchdcn``. (A folder of that name is ``./synthetic``.)
        split: ``"train"`` or ``"val"``.
        transforms: See :class:`CocoDetection`, as for ``crowds`` and ``masks``.
        crowds: Keep regions marked as crowds.
        masks: Give masks.
        progress: Called with (scenes drawn, scenes in all) if the embedded data set is drawn.

    Raises:
        FileNotFoundError: The folder or a part of it is missing.
        ValueError: The annotation file is broken.

    Example:
        >>> from torchdcn.data import open_dataset
        >>> open_dataset("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: /nowhere: there is no such folder
    """
    root = synthetic_folder(progress) if str(data) == "synthetic" else Path(data)
    return CocoDetection(root, split, transforms, crowds=crowds, masks=masks)


def synthetic_folder(progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the embedded data set; draws it if this version of it is not in the cache yet.

    Several processes may call it at once: the first to finish puts its folder in place, and all draw the
    same.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchdcn"
    key = "-".join(f"{name}{value}" for name, value in DEFAULT.items())
    root = cache / f"synthetic-v{VERSION}-{key}"
    if not root.is_dir():
        try:
            make_synthetic(root, **DEFAULT, progress=progress)  # type: ignore[arg-type]  # mixed numbers
        except OSError:
            if not root.is_dir():
                raise
    return root
