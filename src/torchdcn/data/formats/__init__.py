"""The formats of data sets that are converted to COCO's: a table of readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .coco import has_splits
from .labels import LabelFolder, Labelled, LabelsError, Split
from .voc import VocFolder
from .yolo import YoloFolder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMATS", "LabelFolder", "Labelled", "LabelsError", "Split", "find_format"]

FORMATS: tuple[type[LabelFolder], ...] = (YoloFolder, VocFolder)
"""The readers, in the order in which they are asked whether a folder is theirs. A new format is a line more."""


def find_format(root: Path) -> type[LabelFolder] | None:
    r"""The reader of a folder's format, or None if it is in none of them; COCO's own is in none.

    Raises:
        LabelsError: The folder is in a format, but it can't be told which file describes it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats import find_format
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "data.yaml").write_text("train: images\nnames: [cup, eel]\n")
        >>> find_format(root).name
        'YOLO'
    """
    if not root.is_dir() or has_splits(root):
        return None
    return next((each for each in FORMATS if each.matches(root)), None)
