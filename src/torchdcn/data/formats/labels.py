"""What the readers of YOLO and Pascal VOC folders have in common: the interface, and the search for files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ...images import picture_suffixes
from ..annotations import count
from ..text import read_text
from .coco import SAME, split_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

DECIMALS = 4
"""Of coordinates in pixels: labels have less precision, and a file of polygons takes half the space."""


class LabelsError(ValueError):
    """Labels that can't be converted. The message is the first fault, and how many more there are.

    Args:
        faults: A line for each fault.
        checked: Whether ``torchdcn train --check`` names them: it looks at train and val.
    """

    def __init__(self, faults: Sequence[str], *, checked: bool = True) -> None:
        more = f"and {len(faults) - 1} more{': torchdcn train --check names all' if checked else ''}"
        super().__init__(f"{faults[0]} ({more})" if len(faults) > 1 else faults[0])
        self.faults = list(faults)


class Split(NamedTuple):
    """One split of a folder of labels.

    Attributes:
        pairs: The pictures, each with its file of labels, which need not be there.
        faults: What keeps the split from being read, a line each.
        notes: What is left out or looks wrong, a line each; it does not keep the split from being read.
    """

    pairs: list[tuple[Path, Path]]
    faults: list[str]
    notes: list[str]


class Labelled(NamedTuple):
    """What the labels of a picture say.

    Attributes:
        size: Height and width in pixels of the picture as it is shown.
        objects: COCO's annotations with ``bbox``, ``area``, ``iscrowd``, for a polygon ``segmentation``, and with
            ``class``, the name of the class.
    """

    size: tuple[int, int]
    objects: list[dict[str, Any]]


class LabelFolder(Protocol):
    """A folder of labels in one format. The table :data:`torchdcn.data.formats.FORMATS` has the classes.

    Attributes:
        name: Of the format.
    """

    name: ClassVar[str]

    def __init__(self, root: Path) -> None:
        """Finds the pictures and the labels of all splits. LabelsError: no split can be read."""

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether a folder is in this format."""

    @property
    def classes(self) -> Sequence[str] | None:
        """The classes in the order of their labels, or None if they are those that occur."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that say what is in which split."""

    @property
    def splits(self) -> Mapping[str, Split]:
        """Every split that is there or named, train and val first."""

    def read(self, picture: Path, label: Path) -> Labelled:
        """Reads a picture's size and labels. LabelsError: it names all that is wrong with them."""

    def describe_missing(self, split: str) -> str:
        """Says in one line that a split is not there, and what to write."""


def canonical_split(name: str) -> str:
    """The first of a split's names: ``val`` for ``valid``, ``validation`` and ``val2017``.

    Example:
        >>> from torchdcn.data.formats.labels import canonical_split
        >>> canonical_split("valid"), canonical_split("night")
        ('val', 'night')
    """
    return (split_group(name) or (name,))[0]


def in_order(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Train, val and test before others."""
    first = [names[0] for names in SAME if names[0] in splits]
    return {name: splits[name] for name in (*first, *(name for name in splits if name not in first))}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden: macOS leaves ``._a.jpg`` beside ``a.jpg``, and ``__MACOSX`` in archives."""
    return name.startswith(".") or name == "__MACOSX"


def walk_folder(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders below one, itself first, each with the sorted names of its files; none of them hidden.

    Links to folders are followed, to each folder once.

    Raises:
        LabelsError: A folder can't be read.
    """
    seen = set()
    for name, below, files in os.walk(folder, onerror=_raise, followlinks=True):
        state = os.stat(name)  # noqa: PTH116  # of text, as os.walk gives it
        if (state.st_dev, state.st_ino) in seen:
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below[:] = sorted(each for each in below if not is_hidden(each))
        yield Path(name), sorted(each for each in files if not is_hidden(each))


def _raise(error: OSError) -> None:
    raise LabelsError([f"{error.filename}: can't be read: {error.strerror}"])


def read_lines(path: Path) -> list[str]:
    r"""The lines of a text file that are not blank, without the white space around them.

    Raises:
        ValueError: It is no text file; one line that begins with the path.

    Example:
        >>> import tempfile
        >>> from torchdcn.data.formats.labels import read_lines
        >>> path = Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = path.write_bytes("\ufeffa b\r\n\r\nc\r\n".encode())
        >>> read_lines(path)
        ['a b', 'c']
    """
    lines = re.split(r"\r\n?|\n", read_text(path))  # str.splitlines splits at signs that names may have
    return [line.strip() for line in lines if line.strip()]


def has_picture_suffix(name: str) -> bool:
    """Whether a file is a picture by its name; one that is missing or damaged is to be told when it is read."""
    return os.path.splitext(name)[1].lower() in picture_suffixes()  # noqa: PTH122  # a name, no path


def count_with_first(items: Sequence[object], thing: str) -> str:
    """A number of things, with the first of them.

    Example:
        >>> from torchdcn.data.formats.labels import count_with_first
        >>> count_with_first(["a.txt", "b.txt"], "file")
        '2 files (the first: a.txt)'
        >>> count_with_first(["a.txt"], "file")
        '1 file (a.txt)'
    """
    return f"{count(len(items), thing)} ({'the first: ' if len(items) > 1 else ''}{items[0]})"


def box_object(name: str, x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    """An annotation of a box, given by its corners in pixels.

    Example:
        >>> from torchdcn.data.formats.labels import box_object
        >>> box_object("eel", 2, 3, 6, 5)
        {'class': 'eel', 'bbox': [2, 3, 4, 2], 'area': 8, 'iscrowd': 0}
    """
    width, height = round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)
    box = [round(x1, DECIMALS), round(y1, DECIMALS), width, height]
    return {"class": name, "bbox": box, "area": round(width * height, DECIMALS), "iscrowd": 0}


def polygon_object(name: str, polygons: Iterable[Sequence[float]]) -> dict[str, Any]:
    """An annotation of polygons, each x, y, x, y, ... in pixels: the box around them, and the sum of their areas.

    Example:
        >>> from torchdcn.data.formats.labels import polygon_object
        >>> polygon_object("eel", [[2, 3, 6, 3, 6, 5]])
        {'class': 'eel', 'bbox': [2, 3, 4, 2], 'area': 4.0, 'iscrowd': 0, 'segmentation': [[2, 3, 6, 3, 6, 5]]}
    """
    rounded = [[round(value, DECIMALS) for value in polygon] for polygon in polygons]
    xs = [x for polygon in rounded for x in polygon[0::2]]
    ys = [y for polygon in rounded for y in polygon[1::2]]
    found = box_object(name, min(xs), min(ys), max(xs), max(ys))
    return found | {"area": round(sum(map(polygon_area, rounded)), DECIMALS), "segmentation": rounded}


def polygon_area(polygon: Sequence[float]) -> float:
    """The area within a polygon x, y, x, y, ...: half of the sum of the cross products of its edges.

    Example:
        >>> from torchdcn.data.formats.labels import polygon_area
        >>> polygon_area([0, 0, 4, 0, 4, 2, 0, 2])
        8.0
    """
    xs = [x - polygon[0] for x in polygon[0::2]]  # from a point of it, so that large coordinates cancel exactly
    ys = [y - polygon[1] for y in polygon[1::2]]
    edges = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for x1, y1, x2, y2 in edges)) / 2


def faults_of(read: Callable[[], object]) -> list[str]:
    """Calls ``read`` and gives the lines of what it raises."""
    try:
        read()
    except LabelsError as error:
        return error.faults
    except (OSError, ValueError) as error:
        return [str(error)]
    return []
