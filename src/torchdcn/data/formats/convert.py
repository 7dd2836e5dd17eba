"""Folders of labels to COCO's format, kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..annotations import count
from .labels import LabelsError, Split, canonical_split
from .unsplit import split_unsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .labels import LabelFolder, Labelled

    Progress = Callable[[int, int], None]  # (done, in all)

VERSION = 2
"""Version of what is written: a change makes older conversions in the cache be passed over."""


def convert_to_coco(
    folder: LabelFolder, root: Path, cache: Path, progress: Progress | None = None, split: str = "train"
) -> Path:
    r"""Makes a folder in COCO's format that stands for a folder of labels; the pictures stay where they are.

    It has every split that is there and has no fault, and is used again as long as the labels, the pictures and the
    files that name them stay as they are. All splits have one list of classes.

    Args:
        folder: The labels.
        root: The folder that they are in.
        cache: Where conversions are kept.
        progress: Called with (pictures read, pictures in all).
        split: The one that is needed.

    Raises:
        FileNotFoundError: There are no pictures for the split.
        LabelsError: Labels of the split that can't be read, or pictures or labels that a list names and that are not
            there; it names all of them.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.convert import convert_to_coco
        >>> from torchdcn.data.formats.yolo import YoloFolder
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "data.yaml").write_text("train: images/train\nnames: [cup, eel]\n")
        >>> convert_to_coco(YoloFolder(root), root, root / "cache", split="test")
        Traceback (most recent call last):
            ...
        FileNotFoundError: ...data.yaml: names no folder with pictures for test; write one, ...
    """
    name = split if split in folder.splits else canonical_split(split)
    wanted = folder.splits.get(name, Split([], [], []))
    if not wanted.pairs and not wanted.faults:
        raise FileNotFoundError(folder.describe_missing(split))
    key = f"converted-v{VERSION}-{_fingerprint(root, folder)}"
    for target in [cache / key, *sorted(cache.glob(f"{key}-*"))]:
        if annotation_file(target, name).is_file():
            return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=cache) as temporary:
        whole = Path(temporary) / "coco"
        faults = _convert(folder, whole, progress)
        if name in faults:
            raise _error(name, faults[name])
        # Without all splits it has another name: the others may be mended without a change that the fingerprint shows.
        part = "-" + hashlib.sha256(repr(sorted(faults)).encode()).hexdigest()[:8] if faults else ""
        target = cache / (key + part)
        _put(whole, target)
    return target


def convert_unsplit(file: Path, root: Path, cache: Path, split: str = "train") -> Path:
    """Makes a folder in COCO's format with splits, for an export that has one annotation file of all pictures.

    Args:
        file: The annotation file, as from :func:`~torchdcn.data.formats.unsplit.find_unsplit`.
        root: The folder that it is in.
        cache: Where conversions are kept.
        split: The one that is needed.

    Raises:
        FileNotFoundError: There is no such split, or there are no pictures.
        ValueError: The file can't be read.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.convert import convert_unsplit
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in range(10)]
        >>> _ = (root / "result.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
        >>> sorted(path.name for path in convert_unsplit(root / "result.json", root, root / "cache").iterdir())
        ['all', 'annotations', 'result', 'train', 'val']
    """
    with os.scandir(root) as entries:
        folders = sorted(root / each.name for each in entries if each.is_dir())
    states = b" ".join(map(_state, [file, root, *folders]))  # the pictures are found in these
    target = cache / f"divided-v{VERSION}-{hashlib.sha256(bytes(root.resolve()) + states).hexdigest()[:16]}"
    if not target.is_dir():
        parts = split_unsplit(file, root)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=cache) as temporary:
            whole = Path(temporary) / "coco"
            (whole / "annotations").mkdir(parents=True)
            for name, part in parts.items():
                (whole / name).mkdir()
                annotation_file(whole, name).write_text(json.dumps(part), encoding="ascii")
            _put(whole, target)
    names = sorted(path.name for path in target.iterdir() if annotation_file(target, path.name).is_file())
    if not {split, canonical_split(split)} & {*names}:
        raise FileNotFoundError(f"{file}: names no splits, and is given those called {', '.join(names)}, not {split}")
    return target


def _put(folder: Path, target: Path) -> None:
    """Puts a folder into its place, unless another process was faster."""
    try:
        folder.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def annotation_file(root: Path, split: str) -> Path:
    """Where a converted folder has the annotations of a split."""
    return root / "annotations" / f"instances_{split}.json"


def _fingerprint(root: Path, folder: LabelFolder) -> str:
    """A hash of everything that a conversion depends on: files by their time and size."""
    found = hashlib.sha256(f"{root.resolve()} {folder.name}".encode(errors="surrogateescape"))
    for file in folder.files:
        found.update(_state(file))
    for name, split in folder.splits.items():
        found.update(repr((name, split.faults, split.notes)).encode(errors="surrogateescape"))
        for pair in split.pairs:
            for file in pair:
                found.update(_state(file))
    return found.hexdigest()[:16]


def _state(file: Path) -> bytes:
    try:
        state = os.stat(file)  # noqa: PTH116  # twice as fast as Path's, for hundreds of thousands of files
    except OSError:
        return f"{file} missing".encode(errors="surrogateescape")
    return f"{file} {state.st_mtime_ns} {state.st_size}".encode(errors="surrogateescape")


def _convert(folder: LabelFolder, target: Path, progress: Progress | None) -> dict[str, list[str]]:
    """Writes the annotation files of the splits that have no fault, and gives the faults of the others."""
    classes = {name: index for index, name in enumerate(folder.classes or ())}
    splits = {name: split for name, split in folder.splits.items() if split.pairs or split.faults}
    total = sum(len(split.pairs) for split in splits.values())
    done = 0
    writers: dict[str, _SplitWriter] = {}
    faults: dict[str, list[str]] = {}
    for number, (name, split) in enumerate(splits.items()):
        writers[name] = _SplitWriter(target.parent / f"objects-{number}", classes)
        found = [*split.faults]
        for pair in split.pairs:
            found += writers[name].add_picture(folder, *pair)
            done += 1
            if progress is not None:
                progress(done, total)
        writers[name].close()
        if found:
            faults[name] = found
            del writers[name]
    notes = [f"the split {name} is left out: {_error(name, lines)}" for name, lines in faults.items()]
    ids = _category_ids(classes, in_order_of_names=folder.classes is None)
    (target / "annotations").mkdir(parents=True)
    for name, writer in writers.items():
        (target / name).mkdir()
        with annotation_file(target, name).open("w", encoding="ascii") as file:
            writer.write(file, ids, [*splits[name].notes, *notes])
        notes = []  # told once, with the first
    return faults


def _error(split: str, faults: list[str]) -> LabelsError:
    return LabelsError(faults, checked=split in ("train", "val"))


def _category_ids(classes: Mapping[str, int], *, in_order_of_names: bool) -> dict[str, int]:
    """The id of each class, from 1. A folder's own order is that in which its files happen to name them."""
    return {name: number for number, name in enumerate(sorted(classes) if in_order_of_names else classes, 1)}


class _SplitWriter:
    """Writes an annotation file. Objects are kept in a file until the ids of all classes are known.

    Args:
        path: That file.
        classes: The index of each class that has occurred in any split; grows.
    """

    def __init__(self, path: Path, classes: dict[str, int]) -> None:
        self._path = path
        self._objects: TextIO = path.open("w", encoding="ascii")
        self._classes = classes
        self._images: list[str] = []
        self._counts: Counter[str] = Counter()
        self._first_without: Path | None = None

    def add_picture(self, folder: LabelFolder, picture: Path, label: Path) -> list[str]:
        """Reads a picture's labels; gives what is wrong with them."""
        try:
            self._add(picture, folder.read(picture, label))
        except LabelsError as error:
            return error.faults
        return []

    def _add(self, picture: Path, labelled: Labelled) -> None:
        number = len(self._images) + 1
        height, width = labelled.size
        entry = {"id": number, "file_name": os.path.abspath(picture), "width": width, "height": height}  # noqa: PTH100  # resolve() would follow links
        self._images.append(json.dumps(entry | {"orientation": "exif"}))
        for each in labelled.objects:
            index = self._classes.setdefault(each.pop("class"), len(self._classes))
            self._objects.write(f"{index} {number} {json.dumps(each)}\n")
            self._counts["masks" if "segmentation" in each else "boxes"] += 1
            if "segmentation" not in each and self._first_without is None:
                self._first_without = picture

    def close(self) -> None:
        """Ends the reading."""
        self._objects.close()

    def write(self, file: TextIO, ids: Mapping[str, int], notes: list[str]) -> None:
        """Writes the annotation file, object by object: those of a large data set need not fit into memory."""
        by_index = {index: ids[name] for name, index in self._classes.items()}
        file.write('{"images": [' + ",\n".join(self._images) + '],\n"annotations": [')
        with self._path.open(encoding="ascii") as objects:
            for number, line in enumerate(objects, 1):
                index, image, rest = line.rstrip().split(" ", 2)
                start = {"id": number, "image_id": int(image), "category_id": by_index[int(index)]}
                file.write((",\n" if number > 1 else "") + json.dumps(start)[:-1] + ", " + rest[1:])
        categories: list[dict[str, Any]] = [{"id": number, "name": name} for name, number in ids.items()]
        ends = {"categories": categories, "notes": [*notes, *self._mask_note()]}
        file.write("],\n" + json.dumps(ends)[1:])

    def _mask_note(self) -> list[str]:
        boxes = self._counts["boxes"]
        if not boxes or not self._counts["masks"]:
            return []
        some = f"{boxes} of {count(self._counts.total(), 'object')}, the first on {self._first_without},"
        return [f"{some} are boxes without a polygon: a faster_rcnn model can be trained on them, a mask_rcnn can't"]
