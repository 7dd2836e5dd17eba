"""The files of labels that belong to YOLO's pictures."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .labels import LabelsError, count_with_first, is_hidden

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NO_LABELS = {"classes", "predefined_classes", "labels", "notes", "license", "requirements"}
"""Text files beside labels that are none."""
LABELS = {"images": ("labels",), "Images": ("Labels", "labels"), "IMAGES": ("LABELS", "labels")}


class Candidate(NamedTuple):
    """A folder that may have a picture's labels, and how many folders above it may have them too."""

    folder: Path
    depth: int


class LabelFiles:
    """Finds the files of labels of pictures.

    A picture's labels are, in this order: where its path has ``labels`` for the last ``images``; in a folder ``labels``
    beside the folder of the split, or in it; beside the picture. Where there are none, one of these whose name differs
    in upper and lower case or in its Unicode form alone, or one in a folder above, is taken if no other picture could
    take it.

    Args:
        root: The folder of the data set.
        places: For each picture the folder of its split, or its own.
    """

    def __init__(self, root: Path, places: Mapping[Path, Path]) -> None:
        self._root = root
        self._listed: dict[Path, dict[str, Path]] = {}
        self._candidates: dict[tuple[str, Path], list[Candidate]] = {}
        self.of: dict[Path, Path] = {}
        """Each picture's file of labels; where there is none, where it should be."""
        self.folders: dict[str, set[Path]] = defaultdict(set)
        """The folders that have the labels of the pictures in a folder."""
        missing = {}
        for picture, place in places.items():
            folder, stem = os.path.dirname(picture), picture.stem  # noqa: PTH120  # text, as there are many pictures
            candidates = self._find_candidates(folder, place)
            for candidate in candidates:
                label = self.list_labels(candidate.folder).get(stem)
                if label is not None:
                    self.folders[folder].add(candidate.folder)
                    break
            else:
                missing[picture] = candidates
                label = candidates[0].folder / f"{stem}.txt"
            self.of[picture] = label
        self.taken = set(self.of.values())
        self._match_others(missing)

    def list_labels(self, folder: Path) -> dict[str, Path]:
        """The text files in a folder by their stem."""
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    names = [each.name for each in entries if each.name.lower().endswith(".txt") and not each.is_dir()]
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except OSError as error:
                raise LabelsError([f"{folder}: can't be read: {error.strerror}"]) from None
            names.sort(key=lambda name: name.endswith(".txt"))  # a.txt goes before a.TXT
            self._listed[folder] = {name[:-4]: folder / name for name in names if not is_hidden(name)}
        return self._listed[folder]

    def find_parallel(self, folder: Path) -> list[Path]:
        """The folders that have the labels of the pictures in a folder of a path with ``images``."""
        return [each.folder for each in self._swap_images(folder)]

    def _find_candidates(self, folder: str, place: Path) -> list[Candidate]:
        key = folder, place
        if key not in self._candidates:
            own = Path(folder)
            rest = own.relative_to(place)
            beside = [Candidate(base / "labels" / rest, len(rest.parts)) for base in (place.parent, place)]
            swapped = list(self._swap_images(own))
            if own.is_relative_to(self._root) and "images" not in map(str.lower, own.relative_to(self._root).parts):
                found = [*beside, *swapped]  # the data set itself is below a folder images
            else:
                found = [*swapped, *beside]
            self._candidates[key] = [*found, Candidate(own, 0)]
        return self._candidates[key]

    def _swap_images(self, folder: Path) -> Iterator[Candidate]:
        """``labels`` for the last ``images``: within the data set, or in its own path."""
        parts, own = folder.parts, len(self._root.parts) if folder.is_relative_to(self._root) else 0
        found = [index for index, part in enumerate(parts) if part.lower() == "images"]
        if found:
            for name in LABELS.get(parts[found[-1]], ("labels",)):
                swapped = Path(*parts[: found[-1]], name, *parts[found[-1] + 1 :])
                yield Candidate(swapped, len(parts) - max(found[-1] + 1, own))

    def _match_others(self, missing: Mapping[Path, list[Candidate]]) -> None:
        claims = defaultdict(list)
        by_key: dict[Path, dict[str, list[Path]]] = {}
        for picture, candidates in missing.items():
            label = self._find_other(picture, candidates, by_key)
            if label is not None:
                claims[label].append(picture)
        for label, pictures in claims.items():
            if len(pictures) == 1:
                self.of[pictures[0]] = label
                self.taken.add(label)
                self.folders[os.path.dirname(pictures[0])].add(label.parent)  # noqa: PTH120  # as above

    def _find_other(
        self, picture: Path, candidates: list[Candidate], by_key: dict[Path, dict[str, list[Path]]]
    ) -> Path | None:
        key = _spelling(picture.stem)
        for candidate in candidates:
            for folder in [candidate.folder, *candidate.folder.parents][: candidate.depth + 1]:
                if folder not in by_key:
                    by_key[folder] = defaultdict(list)
                    for stem, label in self.list_labels(folder).items():
                        if label not in self.taken:
                            by_key[folder][_spelling(stem)].append(label)
                found = by_key[folder].get(key, [])
                if len(found) == 1:
                    return found[0]
        return None


def _spelling(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def untaken_note(files: Iterable[Path], no_labels: set[Path]) -> list[str]:
    """Says which files of labels no picture takes.

    Args:
        files: What no picture takes.
        no_labels: Lists of pictures, which stand beside them.
    """
    left = sorted(
        path
        for path in files
        if not (path in no_labels or path.stem.lower() in NO_LABELS or path.name.lower().startswith("readme"))
    )
    return [f"{count_with_first(left, 'file')} of labels left out, which no picture takes"] if left else []


def shared_note(pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Says which files of labels several pictures take."""
    counts = Counter(label for _, label in pairs)
    shared = [label for label, number in counts.items() if number > 1 and label.is_file()]
    if not shared:
        return []
    names = " and ".join(picture.name for picture, label in pairs if label == shared[0])
    return [f"{count_with_first(shared, 'file')} of labels taken by several pictures each, as by {names}"]
