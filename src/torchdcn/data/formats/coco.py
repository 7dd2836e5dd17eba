"""Where the annotation file and the pictures of a split are, in COCO's own layout and in those of labelling tools."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from ..nearby import PICTURE_FOLDERS, resolved
from .sniff import file_names, json_kind, list_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAME = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
"""Names of one split."""
YEARS = ("", "2017", "2014")
ANNOTATIONS = ("annotations", "annotation", "labels")
"""Names of the folder of annotation files."""
UNPACKED = ("annotations_trainval2017/annotations", "annotations_trainval2014/annotations")
"""Where COCO's own archives leave it if they are unpacked into folders of their names."""
BESIDE = ("_annotations.coco.json", "labels.json", "annotations.json", "annotation_coco.json", "instances.json")
"""Names of the annotation file in a split's own folder: Roboflow's, FiftyOne's, and other tools'."""
INSTANCES = ("instances_", "instance_")
"""How the annotation files of objects begin; the second is PaddleDetection's."""
OTHER_TASKS = re.compile(r"(captions|person_keypoints|panoptic|stuff|pixelmaps|image_info)_", re.IGNORECASE)
"""COCO's annotation files that are not of objects with boxes."""
FEW = 20
"""JSON files, at most, among which an annotation file is looked for by what they hold: many are of a picture each."""
ENTRIES = 200_000
"""Entries of a folder that are looked at."""
FOLDERS = 50
"""Folders in which the pictures are looked for, where they are in none that is known."""
PROBED = 8
"""Pictures that are looked for in a folder."""


class Found(NamedTuple):
    """An annotation file and the split that its name, or its folder's, says."""

    split: str
    file: Path
    sure: bool = True  # not only a part of its name


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """Finds the annotation file and the image folder of a split.

    The annotation file is the first of these, where ``SPLIT`` is the name asked for, in any case, also with COCO's
    years (``train2017``, ``train2014``) and with other names of the same split (``val``, ``valid``, ``validation``):

    1. ``annotations/instances_SPLIT.json``: COCO, CVAT, datumaro, MMDetection
    2. ``SPLIT/_annotations.coco.json`` (Roboflow), ``SPLIT/labels.json`` (FiftyOne), ``SPLIT/annotations.json``,
       ``SPLIT/annotations/instances.json`` (Supervisely) or ``instances_default.json`` (CVAT's tasks), and other names
       if there is one file alone
    3. ``annotations/SPLIT.json``, then names that have the split as a part: ``annotations/train_labels.json``
    4. ``SPLIT.json`` in the folder itself, then names that have the split as a part

    ``annotations`` may also be called ``annotation`` or ``labels``. In each place the exact name goes before years,
    other cases and other names. Files but the first are taken only if they hold COCO's lists of images and annotations.
    Hidden files are passed over.

    The pictures are in a folder of the split's name, in one of them within ``images``, in ``images`` or ``data``,
    beside the annotation file, or where the file names lead from the folder itself: in the first that has most of the
    first few pictures that are listed.

    Args:
        root: The folder of the data set.
        split: ``"train"``, ``"val"``, ``"test"`` or any other name.

    Returns:
        The annotation file and the folder to which its ``file_name`` entries belong.

    Raises:
        FileNotFoundError: One of them, or the whole folder, is missing, or it is no folder of COCO's annotations.
        ValueError: Two files have the split as a part of their name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.coco import find_split
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "valid").mkdir()
        >>> _ = (root / "valid" / "_annotations.coco.json").write_text('{"images": [], "annotations": []}')
        >>> [path.relative_to(root).as_posix() for path in find_split(root, "val")]
        ['valid/_annotations.coco.json', 'valid']
    """
    if not root.is_dir():
        from .unread import describe_unread

        raise FileNotFoundError(describe_unread(root) if root.exists() else f"data: {root}: there is no such folder")
    found = _find_file(root, split)
    if found is None:
        raise FileNotFoundError(_no_split(root, split))
    try:
        return found.file, find_image_folder(root, found)
    except FileNotFoundError:
        above = root.absolute().parent
        if found.file.parent == root and has_splits(above):
            raise FileNotFoundError(f"{root}: a part of the data set {above}; give that folder") from None
        raise


def list_splits(root: Path) -> list[str]:
    """The splits of a folder of COCO's annotations, as their files or folders are named.

    Example:
        >>> import tempfile
        >>> from torchdcn.data import make_synthetic
        >>> from torchdcn.data.formats.coco import list_splits
        >>> list_splits(make_synthetic(tempfile.mkdtemp() + "/scenes", train=1, val=1, size=64))
        ['train', 'val']
    """
    return list(dict.fromkeys(found.split for place in _places(root) for found in place))


def has_splits(root: Path) -> bool:
    """Whether a folder has COCO's annotations with splits: a train, val or test, or several of other names.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.coco import has_splits
        >>> has_splits(Path("/nowhere"))
        False
    """
    splits: set[str] = set()
    for place in _places(root):
        splits |= {found.split for found in place}
        if len(splits) > 1 or any(split_group(split) for split in splits):
            return True
    return False


def _find_file(root: Path, split: str) -> Found | None:
    for place in _places(root):
        scored = sorted((score, each) for each in place if (score := _score(each.split, split)) is not None)
        best = [each for score, each in scored if score == scored[0][0]]
        if len(best) > 1 and not best[0].sure:
            names = " and ".join(str(each.file) for each in best[:2])
            raise ValueError(f"{names} are both of the split {split!r}; name the right one instances_{split}.json")
        if best:
            return best[0]
    return None


def split_group(split: str) -> tuple[str, ...]:
    """The names of the same split without its year; nothing for a name that says neither train, val nor test.

    Example:
        >>> from torchdcn.data.formats.coco import split_group
        >>> split_group("Validation2017"), split_group("default")
        (('val', 'valid', 'validation'), ())
    """
    plain = re.sub(r"[-_]?\d{4}$", "", split.lower())
    return next((names for names in SAME if plain in names), ())


def _score(name: str, wanted: str) -> tuple[int, int] | None:
    """How well a split's name fits the one asked for: the lower, the better; None if it is another split."""
    spellings = [f"{wanted}{year}" for year in YEARS]
    if name in spellings:
        return 0, spellings.index(name)
    lower = [spelling.lower() for spelling in spellings]
    if name.lower() in lower:
        return 1, lower.index(name.lower())
    names = split_group(wanted)
    if not names or split_group(name) != names:
        return None
    plain = re.sub(r"[-_]?\d{4}$", "", name.lower())
    return (2 if plain == wanted.lower() else 3), names.index(plain)


def _places(root: Path) -> Iterator[list[Found]]:
    """The annotation files with a split's name, a list for each place, in the order of :func:`find_split`."""
    listing = list_folder(root, ENTRIES)
    folders = [root / "annotations"]  # also where it stands after more entries than are looked at
    folders += [root / other for name in ANNOTATIONS for other in listing.folders if other.lower() == name]
    folders += [root / name for name in UNPACKED]
    annotations = [_json_files(folder) for folder in dict.fromkeys(folders)]
    for files, prefix in itertools.product(annotations, INSTANCES):
        yield [Found(file.stem[len(prefix) :], file) for file in files if file.stem.lower().startswith(prefix)]
    for name in listing.folders:
        if split_group(name):
            yield _in_folder(root / name)
    for files in (*annotations, [root / name for name in listing.files if name.lower().endswith(".json")]):
        yield from _by_name(files)


def _json_files(folder: Path) -> list[Path]:
    return [folder / name for name in list_folder(folder, ENTRIES).files if name.lower().endswith(".json")]


def _in_folder(folder: Path) -> list[Found]:
    """The annotation file in a split's own folder."""
    files = _json_files(folder)
    known = [file for name in BESIDE for file in files if file.name.lower() == name]
    known = [file for file in known if file.name.lower() == BESIDE[0] or json_kind(file) == "coco"]
    if not known:
        below = [file for name in ANNOTATIONS for file in _json_files(folder / name)]
        known = _only_coco(below) or _only_coco(files)
    return [Found(folder.name, known[0])] if known else []


def _only_coco(files: list[Path]) -> list[Path]:
    """The one file among these that has COCO's boxes."""
    if len(files) > FEW:
        return []
    found = [file for file in files if not OTHER_TASKS.match(file.name) and json_kind(file) == "coco"]
    return found if len(found) == 1 else []


def _by_name(files: list[Path]) -> Iterator[list[Found]]:
    """Files that are named as a split, then those that have one as a part of their name."""
    usable = [file for file in files if not OTHER_TASKS.match(file.name)]
    plain = [file for file in usable if split_group(file.stem)]
    yield [Found(file.stem, file) for file in plain if json_kind(file) == "coco"]
    parts = {file: [part for part in re.split(r"[\W_]+", file.stem) if split_group(part)] for file in usable}
    named = [Found(found[0], file, sure=False) for file, found in parts.items() if len(found) == 1]
    named = [found for found in named if found.file not in plain]
    yield [found for found in named if json_kind(found.file) == "coco"] if len(named) <= FEW else []


def find_image_folder(root: Path, found: Found) -> Path:
    """The folder that an annotation file's pictures are in.

    Raises:
        FileNotFoundError: No folder has the name of one.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.coco import Found, find_image_folder
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> find_image_folder(root, Found("train", root / "train.json")).name
        'images'
    """
    named: Path | None = None  # the first that is there and has a likely name
    best, most = named, 0
    names = file_names(found.file, PROBED)
    for folder, likely in _image_folders(root, found):
        if not folder.is_dir():
            continue
        if named is None and likely:
            named = folder
        hits = sum(os.path.isfile(resolved(folder, name)) for name in names)  # noqa: PTH113  # never raises
        if hits > most:
            best, most = folder, hits
        if hits > len(names) / 2:  # a few may be missing, and other folders may have pictures of the same names
            break
    best = best or named
    if best is None:
        raise FileNotFoundError(f"{root / found.split}: there is no such folder of images")
    return best


def _image_folders(root: Path, found: Found) -> Iterator[tuple[Path, bool]]:
    """Where the pictures may be, and whether the folder's name says so; the likely ones first."""
    for folder in _likely_folders(root, found):
        yield folder, True
    yield root, False  # file names that lead through folders
    yield found.file.parent, False
    for name in list_folder(root, FOLDERS).folders:
        if split_group(name) in (
            (),
            split_group(found.split),
        ):  # those of other splits may have pictures of these names
            yield root / name, False


def _likely_folders(root: Path, found: Found) -> Iterator[Path]:
    """Where tools put the pictures of a split."""
    below = functools.cache(_folders_by_name)
    own = found.file.parent
    if own != root and own.name.lower() in ANNOTATIONS:
        own = own.parent
    if own != root and split_group(own.name):  # the split has a folder of its own
        yield from (folder for name in PICTURE_FOLDERS for folder in below(own).get(name.lower(), ()))
        yield own
    names = [found.split, *(f"{name}{year}" for name in split_group(found.split) for year in YEARS)]
    names = list(dict.fromkeys(name.lower() for name in names))
    for base in dict.fromkeys([own, root]):
        exact = base / found.split
        yield from (exact / found.split, exact)  # COCO's archives unpacked into folders of their names, and its own
        for folder in (each for name in names for each in below(base).get(name, ())):
            yield from (folder / folder.name, folder)
            yield from (each for name in PICTURE_FOLDERS for each in below(folder).get(name.lower(), ()))
        images = [each for name in PICTURE_FOLDERS for each in below(base).get(name.lower(), ())]
        for folder in images:
            yield from (each for name in names for each in below(folder).get(name, ()))
        yield from images


def _folders_by_name(folder: Path) -> dict[str, list[Path]]:
    """The folders in a folder, by their names in lower case."""
    found: dict[str, list[Path]] = defaultdict(list)
    for name in list_folder(folder, ENTRIES).folders:
        found[name.lower()].append(folder / name)
    return found


def _no_split(root: Path, split: str) -> str:
    """Says which split is missing, which are there, and which may be meant."""
    there = list_splits(root)
    if not has_splits(root):
        from .unread import describe_unread

        return describe_unread(root)
    first = next(found for place in _places(root) for found in place)
    folder, *rest = first.file.relative_to(root).parts
    if folder == first.split:
        wanted = root.joinpath(split, *rest)
    else:
        wanted = first.file.with_name(first.file.name.replace(first.split, split, 1))
    by_lower = {name.lower(): name for name in there}
    near = difflib.get_close_matches(split.lower(), by_lower, 1)
    hint = f"; did you mean the split {by_lower[near[0]]!r}?" if near else ""
    return f"{wanted}: there is no such annotation file; splits there: {', '.join(there)}{hint}"
