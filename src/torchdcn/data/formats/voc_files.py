"""The pictures of Pascal VOC folders and their ``.xml`` files, by their names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from ..nearby import near_file
from .labels import LabelsError, has_picture_suffix, walk_folder
from .voc_layout import FLAG, is_xml
from .voc_xml import read_xml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


WITH_XML = re.compile(r"(.*\.\w+)\s+\S.*\.xml", re.IGNORECASE)
"""A line with a picture and its ``.xml``."""


class VocFiles:
    """The pictures in a folder, and the ``.xml`` files in the same folder or another, with those in folders below.

    Args:
        images: The folder of the pictures.
        annotations: The folder of the ``.xml`` files.

    Raises:
        LabelsError: A folder can't be read.
    """

    def __init__(self, images: Path, annotations: Path) -> None:
        self.images = images
        self.annotations = annotations
        self.pictures: dict[str, Path] = {}
        """By their path in the folder."""
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_last: dict[str, list[Path]] = defaultdict(list)
        self.xmls = {os.path.splitext(name)[0]: path for name, path in _below(annotations) if is_xml(name)}  # noqa: PTH122
        """By their path in the folder, without the suffix."""
        self._xmls_by_last: dict[str, list[Path]] = defaultdict(list)
        for stem, path in self.xmls.items():
            self._xmls_by_last[_last(stem)].append(path)
        for name, path in _below(images):
            if has_picture_suffix(name):
                stem = os.path.splitext(name)[0]  # noqa: PTH122
                self.pictures[name] = path
                self._by_stem[stem].append(path)
                self._by_last[_last(stem)].append(path)

    def find_pair(self, line: str) -> tuple[Path, Path] | str:
        """The picture that a line of a list names, with its ``.xml``; or what there is instead."""
        pictures = self.find_pictures(line)
        if not pictures:
            near = near_file(self.images / line.replace("\\", "/").lstrip("/"))
            return f"is no picture in {self.images}" + (f"; did you mean {near.name}?" if near else "")
        xml = self.find_xml(pictures[0])
        if xml is None:
            return f"is no {pictures[0].stem}.xml in {self.annotations}"
        picture = self.choose(pictures, xml)
        if picture is None:
            names = " and ".join(path.relative_to(self.images).as_posix() for path in pictures)
            return f"are {names}; write the one that is meant with its suffix"
        return picture, xml

    def find_pictures(self, line: str) -> list[Path]:
        """The pictures that a line of a list may name: one, if all is well.

        The line is a name, with or without a picture's suffix, or a path that ends with one. Behind it may stand the
        flag of a class list (1, 0 or -1) or, in PaddleX's lists, the ``.xml``, if nothing has a name with that in it.
        """
        longer = FLAG.fullmatch(line) or WITH_XML.fullmatch(line)
        for name in [line, *([longer[1]] if longer else [])]:
            for spelling in dict.fromkeys([name, self._inside(name.replace("\\", "/"))]):
                found = self._find(spelling)
                if found or spelling in self.xmls:
                    return found
        return []

    def find_xml(self, picture: Path) -> Path | None:
        """A picture's ``.xml``: of the same path, or else the only one of the same name."""
        name = picture.relative_to(self.images).as_posix()
        stem = os.path.splitext(name)[0]  # noqa: PTH122
        if stem in self.xmls:
            return self.xmls[stem]
        found = self._xmls_by_last.get(_last(stem), [])
        return found[0] if len(found) == 1 == len({path.parent for path in self._by_last[_last(stem)]}) else None

    def choose(self, pictures: list[Path], xml: Path) -> Path | None:
        """The one of these pictures, all of one name, whose file name is in the ``.xml``."""
        if len(pictures) == 1:
            return pictures[0]
        try:
            named = re.split(r"[\\/]", (read_xml(xml).findtext("filename") or "").strip())[-1]
        except LabelsError:  # told when its labels are read
            return pictures[0]
        for spell in (str, str.lower):
            found = [picture for picture in pictures if spell(picture.name) == spell(named)]
            if len(found) == 1:
                return found[0]
        return None

    def same_name(self) -> Iterator[list[Path]]:
        """The pictures, those together that have one name but for the suffix."""
        yield from self._by_stem.values()

    def _find(self, name: str) -> list[Path]:
        if name in self.pictures:
            return [self.pictures[name]]
        stem = os.path.splitext(name)[0] if has_picture_suffix(name) else name  # noqa: PTH122
        for each in dict.fromkeys([name, stem]):
            if found := self._by_stem.get(each) or self._by_last.get(each):
                return found
        return []

    def _inside(self, name: str) -> str:
        """A path as seen from the folder of the pictures."""
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        if self.images.name in parts:
            parts = parts[len(parts) - parts[::-1].index(self.images.name) :]
        return "/".join(parts)


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files in a folder and below, with their path in it."""
    for where, names in walk_folder(folder):
        inside = where.relative_to(folder).as_posix()
        for name in names:
            yield (name if inside == "." else f"{inside}/{name}"), where / name


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]
