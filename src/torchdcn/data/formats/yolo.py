"""YOLO folders: a ``data.yaml``, pictures, and text files with a line for each object."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...images import picture_size
from ..annotations import count
from ..nearby import near_file
from ..text import read_text
from .labels import (
    Labelled,
    LabelsError,
    Split,
    box_object,
    count_with_first,
    faults_of,
    has_picture_suffix,
    in_order,
    polygon_object,
    read_lines,
    walk_folder,
)
from .yolo_files import LabelFiles, shared_note, untaken_note
from .yolo_yaml import DataYaml, find_data_yaml, read_data_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROUNDING = 0.01
"""How far a fraction may lie outside of 0..1: a pixel of a picture of 100."""
COMPANIONS = (".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".md", ".html", ".cache", ".npy", ".db", ".ini", ".py")
"""Files that stand beside pictures and are none; ``.cache`` and ``.npy`` are Ultralytics' own."""


class YoloFolder:
    r"""A folder with a ``data.yaml``; see :class:`~torchdcn.data.formats.labels.LabelFolder`.

    Raises:
        LabelsError: ``data.yaml`` can't be read or has no classes.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from torchdcn.data.formats.yolo import YoloFolder
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "data.yaml").write_text("train: images\nnames: [cup, eel]\n")
        >>> for name in ("images", "labels"):
        ...     (root / name).mkdir()
        >>> Image.new("L", (40, 20)).save(root / "images" / "a.png")
        >>> _ = (root / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
        >>> folder = YoloFolder(root)
        >>> [pair] = folder.splits["train"].pairs
        >>> folder.read(*pair).objects[0]["bbox"]
        [15.0, 5.0, 10.0, 10.0]
    """

    name: ClassVar[str] = "YOLO"

    def __init__(self, root: Path) -> None:
        path = find_data_yaml(root)
        if path is None:
            raise LabelsError([f"{root}: no YAML file with names, train and val"])
        self._yaml = read_data_yaml(path)
        self.classes = self._yaml.names
        found = {name: _SplitSearch(self._yaml, name, places) for name, places in self._yaml.splits.items()}
        for name, places in self._yaml.others.items():
            other = _SplitSearch(self._yaml, name, places)
            if other.places and not other.faults:
                found[name] = other
        self._labels = LabelFiles(root, {pic: place for each in found.values() for pic, place in each.places.items()})
        self._lists = {path for each in found.values() for path in each.lists}
        self.files = [path, *sorted(self._lists)]
        self._told: set[Path] = set()
        splits = {name: self._split(each) for name, each in found.items()}
        wrong = {name: Split([], [fault, *self._yaml.faults], []) for name, fault in self._yaml.split_faults.items()}
        self.splits = in_order(wrong | splits)

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether a folder has a YAML file that describes splits."""
        return find_data_yaml(root) is not None

    def read(self, picture: Path, label: Path) -> Labelled:
        """Reads a picture's size and the lines of its labels, if there are any."""
        faults: list[str] = []
        size, text = (1, 1), ""
        try:
            size = picture_size(picture)
        except OSError as error:
            faults.append(str(error))
        try:
            text = _read_label(label)
        except ValueError as error:
            faults.append(str(error))
        objects = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    objects.append(self._read_line(line.split(), size))
                except ValueError as error:
                    faults.append(f"{label}: line {number}: {error}")
        if faults:
            raise LabelsError(faults)
        return Labelled(size, objects)

    def describe_missing(self, split: str) -> str:
        """Says what to write into ``data.yaml``."""
        there = ", ".join(name for name, each in self.splits.items() if each.pairs) or "none"
        place = f"names no folder with pictures for {split}; write one, as in {split}: {split}/images"
        seen = self.splits[split].notes if split in self.splits else []
        return "; ".join([f"{self._yaml.path}: {place}", f"splits there: {there}", *seen])

    def _split(self, found: _SplitSearch) -> Split:
        pairs = [(picture, self._labels.of[picture]) for picture in found.places]
        faults = [*self._yaml.faults, *found.faults]
        left: list[Path] = []
        faults += faults_of(lambda: left.extend(found.find_untaken(self._labels, self._told)))
        self._told.update(left)
        notes = [*found.notes, *shared_note(pairs), *untaken_note(left, self._lists)]
        return Split(pairs, faults, [f"{self._yaml.path}: {note}" for note in notes])

    def _read_line(self, words: list[str], size: tuple[int, int]) -> dict[str, Any]:
        index, values = _read_numbers(words, len(self.classes))
        height, width = size
        name, numbers = self.classes[index], self._yaml.keypoint_numbers
        if len(values) == 4 or (numbers and len(values) == 4 + numbers):
            x, y, w, h = values[:4]
            _check_fractions(values[:4])
            if w < 0 or h < 0:
                raise ValueError(f"expected a width and a height of 0 or more, got {w:g} and {h:g}")
            left, top = (x - w / 2) * width, (y - h / 2) * height
            return box_object(name, left, top, left + w * width, top + h * height)
        if numbers or len(values) < 6 or len(values) % 2:
            forms = f"or those and {numbers} of key points" if numbers else "or the x and y of at least three points"
            wanted = f"expected a class and x, y, width, height, {forms}"
            raise ValueError(f"{wanted}, got {count(len(words), 'number')}")
        _check_fractions(values)
        pixels = [value * (height if place % 2 else width) for place, value in enumerate(values)]
        return polygon_object(name, [pixels])


class _SplitSearch:
    """The pictures of a split, and what was seen on the way."""

    def __init__(self, data: DataYaml, name: str, places: Sequence[str]) -> None:
        self.name = name
        self.places: dict[Path, Path] = {}
        """Each picture, with the folder of the split that it is in, or its own if a list names it."""
        self.lists: list[Path] = []
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._data = data
        self._text_folders: list[Path] = []
        self._folders: list[Path] = []
        self._repeated: list[Path] = []
        self._unread: list[Path] = []
        self._listed_folders: set[str] = set()
        for text in places:
            self.faults += faults_of(partial(self._search, text))
        self._tell_counts()

    def find_untaken(self, labels: LabelFiles, told: set[Path]) -> Iterator[Path]:
        """The text files that no picture takes: beside the pictures, in the parallel folders, in those of labels."""
        folders = set(self._text_folders)
        for folder in self._folders:
            for parallel in filter(Path.is_dir, labels.find_parallel(folder)):
                folders.update(where for where, _ in walk_folder(parallel))
        of_listed: dict[Path, set[str]] = {}
        for picture_folder in dict.fromkeys(map(os.path.dirname, self.places)):
            if picture_folder in self._listed_folders:  # the others in it need not be of this split
                own = {*labels.find_parallel(Path(picture_folder)), *labels.folders[picture_folder]} - folders
                of_listed |= dict.fromkeys(own, _picture_stems(picture_folder))
            else:
                folders |= labels.folders[picture_folder]
        for folder in folders | of_listed.keys():
            for stem, label in labels.list_labels(folder).items():
                if not (label in labels.taken or label in told or stem in of_listed.get(folder, ())):
                    yield label

    def _search(self, text: str) -> None:
        place, by_end = self._data.find_place(text)
        if place is None:
            raise LabelsError([f"{self._data.path}: {self.name}: there is no folder {text}, nor a list of pictures"])
        if by_end:
            self.notes.append(f"there is no {text}; {place} is taken for it")
        if place.is_dir():
            self._folders.append(place)
            self._read_folder(place)
        elif has_picture_suffix(place.name):
            wanted = "expected a folder or a list of pictures"
            raise LabelsError([f"{self._data.path}: {self.name}: {wanted}, got {text}"])
        else:
            self.lists.append(place)
            self._read_list(place)

    def _add(self, picture: Path, place: Path) -> None:
        if picture in self.places:
            self._repeated.append(picture)
        else:
            self.places[picture] = place

    def _read_folder(self, place: Path) -> None:
        for folder, names in walk_folder(place):
            has_text = False
            for name in names:
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  # a name, no path
                if has_picture_suffix(name):
                    self._add(folder / name, place)
                elif suffix == ".txt":
                    has_text = True
                elif suffix not in COMPANIONS:
                    self._unread.append(folder / name)
            self._text_folders += [folder] if has_text else []

    def _read_list(self, path: Path) -> None:
        missing, moved = [], []
        for line in read_lines(path):
            picture, by_end = self._data.find_place(line, path.parent)
            if picture is None or not picture.is_file():
                missing.append(line)
            elif not has_picture_suffix(picture.name):
                self.faults.append(f"{path}: names {line}, which is no picture of a kind that can be read")
            else:
                moved += [line] if by_end else []
                self._listed_folders.add(str(picture.parent))
                self._add(picture, picture.parent)
        if missing and not self.places:
            first = count_with_first(missing, "picture")
            self.faults.append(f"{path}: nothing that it names is there: {first}")
        else:
            self.faults += [f"{path}: names {line}, of which there is no picture{self._near(line)}" for line in missing]
        if moved:
            self.notes.append(f"{count_with_first(moved, 'picture')} looked for by the end of the path in {path.name}")

    def _near(self, line: str) -> str:
        near = near_file(self._data.path.parent / line.replace("\\", "/"))
        return f"; did you mean {near}?" if near else ""

    def _tell_counts(self) -> None:
        if self._repeated:
            self.notes.append(f"{count_with_first(self._repeated, 'picture')} named more than once, taken once")
        if self._unread:
            suffixes = Counter(path.suffix or "no suffix" for path in self._unread)
            kinds = ", ".join(f"{suffix} {number}" for suffix, number in suffixes.most_common(5))
            first = count_with_first(self._unread, "file")
            self.notes.append(f"{first} left out, which are not read as pictures: {kinds}")


def _picture_stems(folder: str) -> set[str]:
    return {os.path.splitext(name)[0] for name in os.listdir(folder) if has_picture_suffix(name)}  # noqa: PTH122, PTH208


def _read_label(path: Path) -> str:
    """The content of a file of labels, or nothing if there is none."""
    try:
        return read_text(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise LabelsError([f"{path}: a link that leads nowhere"]) from None
        return ""
    except OSError as error:
        raise LabelsError([f"{path}: can't be read: {error.strerror}"]) from None


def _read_numbers(words: list[str], classes: int) -> tuple[int, list[float]]:
    """The class and the other numbers of a line."""
    try:
        first, *values = map(float, words)
    except ValueError as error:
        raise ValueError(f"expected numbers: {error}") from None
    if not first.is_integer() or first < 0:
        raise ValueError(f"expected a class as a whole number from 0, got {words[0]}")
    if first >= classes:
        raise ValueError(f"expected a class from 0 to {classes - 1}, as names has {classes}, got {words[0]}")
    return int(first), values


def _check_fractions(values: Sequence[float]) -> None:
    for value in values:
        if not -ROUNDING <= value <= 1 + ROUNDING:
            advice = " (pixels must be divided by the picture's width and height)" if value > 1 else ""
            raise ValueError(f"expected fractions of the picture in 0..1, got {value:g}{advice}")
