"""From what ``--data`` says to a folder in COCO's format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .converters import converted, kind_of_folder
from .synthetic import VERSION, make_synthetic, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT = {"train": 600, "val": 100, "size": 160, "seed": 0, "difficulty": 0.3}
"""The settings of the data set called ``synthetic``: those of :func:`make_synthetic` without arguments."""


def coco_folder(data: str | Path, progress: Callable[[int, int], None] | None = None, split: str = "train") -> Path:
    """The folder of a data set in COCO's format: the one given, the embedded one, or a converted one from the cache.

    Args:
        data: A folder, or ``"synthetic"``.
        progress: Called with (done, in all) where scenes are drawn or annotations converted.
        split: The one that is needed.

    Raises:
        FileNotFoundError: A YOLO or Pascal VOC folder without that split.
        ValueError: A YOLO or Pascal VOC folder that can't be converted.
        ImportError: It is such a folder, and supervision isn't installed.
    """
    if str(data) == "synthetic":
        return synthetic_folder(progress)
    kind = kind_of_folder(Path(data))
    return Path(data) if kind in (None, "coco") else converted(Path(data), _cache(), progress, split)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchdcn"


def synthetic_folder(progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of the embedded data set; draws it if this version of it is not in the cache yet.

    Several processes may call it at once: the first to finish puts its folder in place, and all draw the
    same.
    """
    key = "-".join(f"{name}{value}" for name, value in DEFAULT.items())
    root = _cache() / f"synthetic-v{VERSION}-{key}"
    remove_leftovers(root)
    if not root.is_dir():
        try:
            make_synthetic(root, **DEFAULT, progress=progress)  # type: ignore[arg-type]  # mixed numbers
        except OSError:
            if not root.is_dir():
                raise
    return root
