"""Pascal VOC folders: pictures, an ``.xml`` file for each, and lists of the names in each split."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from ...images import picture_size
from ..annotations import count
from .labels import (
    Labelled,
    LabelsError,
    Split,
    canonical_split,
    count_with_first,
    in_order,
    read_lines,
)
from .unsplit import split_by_name, split_note
from .voc_files import VocFiles
from .voc_layout import Source, find_sources
from .voc_xml import class_name, is_deleted, read_object, read_size, read_xml

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element


class VocFolder:
    """A Pascal VOC folder; see :class:`~torchdcn.data.formats.labels.LabelFolder`.

    Raises:
        LabelsError: A folder can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from torchdcn.data.formats.voc import VocFolder
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "train").mkdir()
        >>> Image.new("L", (40, 20)).save(root / "train" / "a.png")
        >>> box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>4</ymax></bndbox>"
        >>> xml = f"<annotation><object><name>eel</name>{box}</object></annotation>"
        >>> _ = (root / "train" / "a.xml").write_text(xml)
        >>> folder = VocFolder(root)
        >>> [pair] = folder.splits["train"].pairs
        >>> folder.read(*pair).objects[0]["bbox"]
        [0.0, 0.0, 8.0, 4.0]
    """

    name: ClassVar[str] = "Pascal VOC"
    classes: None = None

    def __init__(self, root: Path) -> None:
        self._root = root
        sources = find_sources(root)
        self.files = [source.listing for source in sources if source.listing]
        found: dict[str, Split] = {}
        by_folders: dict[tuple[Path, Path], VocFiles] = {}
        first_of: dict[tuple[Path, Path], Split] = {}
        for source in sources:
            key = source.images, source.annotations
            if key not in by_folders:
                by_folders[key] = VocFiles(*key)
            files = by_folders[key]
            for name, split in _read_source(source, files).items():
                plain = canonical_split(name)
                found[name if plain in found else plain] = split
                first_of.setdefault(key, split)
        self.splits = in_order(found)
        taken = {label for split in found.values() for _, label in split.pairs}
        for key, files in by_folders.items():
            left = [path.relative_to(files.annotations) for path in files.xmls.values() if path not in taken]
            if left:
                reason = "which no list names" if self.files else "which have no picture"
                first_of[key].notes.append(f"{files.annotations}: {count_with_first(left, 'file')} left out, {reason}")

    @classmethod
    def matches(cls, root: Path) -> bool:
        """Whether a folder has ``.xml`` files in one of the layouts of Pascal VOC."""
        return bool(find_sources(root))

    def read(self, picture: Path, label: Path) -> Labelled:
        """Reads a picture's size and its ``.xml``, if there is one."""
        size: tuple[int, int] | None = None
        objects: list[dict[str, Any]] = []
        faults: list[str] = []
        try:
            size = picture_size(picture)
        except OSError as error:
            faults.append(str(error))
        if os.path.lexists(label):  # a link that leads nowhere is a fault
            try:
                root = read_xml(label)
            except LabelsError as error:
                faults += error.faults
            else:
                faults += _size_faults(root, picture, label, size)
                objects = _read_objects(root, label, faults)
        if faults or size is None:
            raise LabelsError(faults)
        return Labelled(size, objects)

    def describe_missing(self, split: str) -> str:
        """Says which list or folder to make."""
        there = ", ".join(name for name, each in self.splits.items() if each.pairs) or "none"
        places = f"expected ImageSets/Main/{split}.txt to name them, or a folder {split} with pictures and .xml files"
        return f"{self._root}: a Pascal VOC folder without pictures for {split}; {places}; splits there: {there}"


def _read_source(source: Source, files: VocFiles) -> dict[str, Split]:
    if source.listing:
        return {source.split: _read_list(source.listing, files)}
    whole = _read_folder(files, keep_unlabelled=bool(source.split))
    if source.split:
        return {source.split: whole}
    by_name = {picture.relative_to(files.images).as_posix(): (picture, label) for picture, label in whole.pairs}
    names = split_by_name(by_name)
    notes = [*whole.notes, split_note(str(files.images), names)]
    return {split: Split([by_name[name] for name in each], whole.faults, [*notes]) for split, each in names.items()}


def _read_list(listing: Path, files: VocFiles) -> Split:
    """The pictures that a list names, with their ``.xml`` files, and what it names in vain."""
    try:
        lines = read_lines(listing)
    except (OSError, ValueError) as error:
        return Split([], [str(error)], [])
    pairs: dict[Path, Path] = {}
    repeated: list[str] = []
    faults: list[str] = []
    for line in lines:
        found = files.find_pair(line)
        if isinstance(found, str):
            faults.append(f"{listing}: names {line}, of which there {found}")
        elif found[0] in pairs:
            repeated.append(line)
        else:
            pairs[found[0]] = found[1]
    if len(faults) == len(lines) > 1:
        faults = [f"{faults[0]}; nor is one of the {count(len(lines) - 1, 'other')} that it names"]
    notes = [f"{listing}: {count_with_first(repeated, 'name')} there more than once, taken once"] if repeated else []
    return Split(list(pairs.items()), faults, notes)


def _read_folder(files: VocFiles, *, keep_unlabelled: bool) -> Split:
    """All pictures of a folder, with their ``.xml`` files."""
    split = Split([], [], [])
    without: list[Path] = []
    others: list[Path] = []
    for pictures in files.same_name():
        label = files.find_xml(pictures[0])
        if label is None:
            without += pictures
            split.pairs.extend((picture, picture.with_suffix(".xml")) for picture in pictures if keep_unlabelled)
            continue
        picture = files.choose(pictures, label)
        if picture is None:
            names = " and ".join(each.name for each in pictures)
            split.faults.append(f"{label}: its <filename> is none of {names}, which all have its name")
            continue
        split.pairs.append((picture, label))
        others += [each for each in pictures if each != picture]
    reason = "taken to have no objects" if keep_unlabelled else "left out"
    if without:
        some = _count_inside(files.images, without)
        split.notes.append(f"{files.images}: {some} without an .xml, {reason}")
    if others:
        some = _count_inside(files.images, others)
        split.notes.append(f"{files.images}: {some} left out, as the .xml of that name is of another picture")
    return split


def _count_inside(folder: Path, pictures: list[Path]) -> str:
    return count_with_first([picture.relative_to(folder) for picture in pictures], "picture")


def _size_faults(root: Element, picture: Path, label: Path, size: tuple[int, int] | None) -> list[str]:
    try:
        said = read_size(root)
    except ValueError as error:
        return [f"{label}: <size>: {error}"]
    if size is None or said in (None, size):
        return []
    pixels, wanted = (f"{width} x {height}" for height, width in (size, said or size))
    return [f"{picture}: the image has {pixels} pixels, its .xml says {wanted}"]


def _read_objects(root: Element, label: Path, faults: list[str]) -> list[dict[str, Any]]:
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        if is_deleted(element):
            continue
        try:
            objects.append(read_object(element))
        except ValueError as error:
            faults.append(f"{label}: object {number} ({class_name(element) or 'without a name'}): {error}")
    return objects
