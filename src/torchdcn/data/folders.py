"""From what ``--data`` says to a folder in COCO's format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..synthetic.dataset import VERSION, make_synthetic, remove_leftovers
from .formats import find_format
from .formats.convert import convert_to_coco, convert_unsplit
from .formats.unsplit import find_unsplit

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
        FileNotFoundError: A folder that is to be converted, without that split.
        LabelsError: A YOLO or Pascal VOC folder that can't be converted; a ValueError.
        ValueError: An annotation file without splits that can't be read.
    """
    if str(data) == "synthetic":
        return synthetic_folder(progress)
    root = Path(data)
    labels = find_format(root)
    if labels is not None:
        return convert_to_coco(labels(root), root, _cache(), progress, split)
    whole = find_unsplit(root)
    return root if whole is None else convert_unsplit(whole, root, _cache(), split)


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
