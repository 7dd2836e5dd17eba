"""Data sets in COCO's format, their way to the model, and the scenes that the project draws itself."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ..synthetic import make_synthetic
from .coco import CocoDetection, require_objects
from .folders import coco_folder, synthetic_folder
from .transforms import collate, eval_transforms, train_transforms

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "CocoDetection",
    "collate",
    "eval_transforms",
    "make_synthetic",
    "open_dataset",
    "require_objects",
    "synthetic_folder",
    "train_transforms",
]


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

    A YOLO or Pascal VOC folder is converted at its first use. What is left out of the data is told in warnings.

    Args:
        data: A folder, or ``"synthetic"``: :func:`make_synthetic` with its defaults, kept in
            ``$XDG_CACHE_HOME/torchdcn`` or ``~/.cache/torchdcn``. (A folder of that name is ``./synthetic``.)
        split: ``"train"``, ``"val"``, or any other that the data has.
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
        FileNotFoundError: data: /nowhere: there is no such folder
    """
    dataset = CocoDetection(coco_folder(data, progress, split), split, transforms, crowds=crowds, masks=masks)
    for note in dataset.notes:
        warnings.warn(f"{split}: {note}", stacklevel=2)
    return dataset
