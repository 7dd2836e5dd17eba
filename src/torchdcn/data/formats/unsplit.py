"""Exports that name no train and val: each picture's file name decides to which it belongs."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..nearby import PICTURE_FOLDERS, missing_file, resolved
from ..text import read_json
from .coco import ANNOTATIONS, OTHER_TASKS, Found, find_image_folder, has_splits, list_splits, split_group
from .sniff import json_kind, list_folder

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from pathlib import Path

VAL = 0.2
"""The share of pictures that are val."""
ALL = "all"
"""The split of all pictures."""
KNOWN = ("result.json", "_annotations.coco.json", "annotations.json", "labels.json", "instances_default.json")
"""Names of the annotation file: Label Studio's, Roboflow's, labelme2coco's, FiftyOne's, CVAT's. They go first."""
FEW = 20
"""Files in a folder, at most, among which the annotation file is looked for by what they hold."""
ENTRIES = 200_000
"""Entries of a folder that are looked at."""


def split_by_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Divides pictures into train and val by a hash of their names.

    About one in five is val. The same name is always on the same side, whatever other pictures there are; but of two
    pictures and more at least one is val and one is train. Backslashes count as slashes, and Unicode's forms as one, so
    that an export gives the same on every system.

    Args:
        names: File names, relative to the data set's folder.

    Returns:
        ``{"train": names, "val": names}``, in the order given.

    Example:
        >>> from torchdcn.data.formats.unsplit import split_by_name
        >>> {split: len(names) for split, names in split_by_name(f"{i}.jpg" for i in range(1000)).items()}
        {'train': 801, 'val': 199}
    """
    listed = list(names)
    places = {name: _place(name) for name in listed}
    val = {name for name, place in places.items() if place < VAL}
    if len(places) > 1 and not val:
        val = {min(places, key=lambda name: (places[name], name))}
    elif len(places) > 1 and len(val) == len(places):
        val -= {max(places, key=lambda name: (places[name], name))}
    return {
        "train": [name for name in listed if name not in val],
        "val": [name for name in listed if name in val],
    }


def _place(name: str) -> float:
    """A number from 0 to 1 that a name alone decides."""
    plain = unicodedata.normalize("NFC", name.replace("\\", "/"))
    digest = hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_note(what: str, splits: dict[str, list[Any]]) -> str:
    """Says that pictures were divided by a hash, and what that means.

    Args:
        what: The file or folder that names no splits.
        splits: As from :func:`split_by_name`.

    Example:
        >>> from torchdcn.data.formats.unsplit import split_note
        >>> split_note("result.json", {"train": ["a.jpg"], "val": ["b.jpg"]}).split(":")[0]
        'result.json names no splits'
    """
    train, val = len(splits["train"]), len(splits["val"])
    return (
        f"{what} names no splits: {train} of its {train + val} pictures {'is' if train == 1 else 'are'} train, {val} "
        "val, by a hash of their names; pictures of one scene can stand on both sides, so give lists of your own for "
        "figures that you publish"
    )


def find_unsplit(root: Path) -> Path | None:
    """Finds the one annotation file of all pictures, or None.

    It is in the folder, in its ``annotations`` or with the pictures, and holds COCO's lists of images and annotations:
    Label Studio's ``result.json``, CVAT's ``annotations/instances_default.json``, a ``labels.json`` of FiftyOne's, an
    ``annotations.json`` or ``_annotations.coco.json``, or one of any other name if it is the only one.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unsplit import find_unsplit
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "result.json").write_text('{"images": [], "categories": [], "annotations": []}')
        >>> find_unsplit(root).name
        'result.json'
    """
    if has_splits(root):
        return None
    found = unsplit_files(root)
    known = [file for name in KNOWN for file in found if file.name.lower() == name]
    if known:
        return known[0]
    return found[0] if len(found) == 1 else None


def unsplit_files(root: Path) -> list[Path]:
    """All files that hold COCO's lists of images and annotations, in a folder and those of annotations and pictures.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unsplit import unsplit_files
        >>> unsplit_files(Path("/nowhere"))
        []
    """
    listing = list_folder(root, ENTRIES)
    usual = {*ANNOTATIONS, *(name.lower() for name in PICTURE_FOLDERS)}
    folders = [root, *(root / name for name in listing.folders if name.lower() in usual)]
    found: list[Path] = []
    for folder in folders:
        names = [name for name in list_folder(folder, ENTRIES).files if name.lower().endswith(".json")]
        if len(names) > FEW:  # one for each picture: another tool's
            names = [name for name in names if name.lower() in KNOWN or name.lower().startswith("instances")]
        names = [name for name in names if not OTHER_TASKS.match(name)]
        found += [folder / name for name in names if json_kind(folder / name) == "coco"]
    return found


def split_unsplit(file: Path, root: Path) -> dict[str, dict[str, Any]]:
    """Divides the pictures of an annotation file into splits.

    Where the file names lead through folders named train and val or test, these say the split; else
    :func:`split_by_name` does. All entries are kept as they are, but for ``file_name``, which becomes absolute. A file
    name that leads nowhere, as one of the machine where the labels were made, is taken for the picture of that last
    name, if there is one such picture and one such name.

    Args:
        file: As from :func:`find_unsplit`.
        root: The folder of the data set.

    Returns:
        The content of an annotation file for each split, among them ``all``, and the file's own name (``default`` of
        ``instances_default.json``) unless that is ``annotations``. ``notes`` has what is to be told, a line each.

    Raises:
        ValueError: The file is no JSON, or has no list of images; one line that begins with its path.
        FileNotFoundError: There is no folder of pictures, and none of the pictures.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unsplit import split_unsplit
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images").mkdir()
        >>> images = [{"id": i, "file_name": f"images/{i}.jpg", "width": 8, "height": 8} for i in range(10)]
        >>> _ = (root / "result.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
        >>> {split: len(each["images"]) for split, each in split_unsplit(root / "result.json", root).items()}
        {'train': 8, 'val': 2, 'all': 10, 'result': 10}
    """
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{file}: images: expected a list of images with file_name, width and height")
    own = re.sub("^instances?_", "", file.stem, flags=re.IGNORECASE).strip("_").removesuffix(".coco")
    names = list(dict.fromkeys(name for image in content["images"] if (name := _file_name(image)) is not None))
    places, notes = _find_pictures(names, root, _image_folder(file, root, own, names))
    images = [
        image if (name := _file_name(image)) is None else image | {"file_name": places[name]}
        for image in content["images"]
    ]
    splits = _split_by_folder(names)
    if splits:
        counts = ", ".join(f"{len(each)} {split}" for split, each in splits.items())
        note = f"{file.name}: the splits of its {len(names)} pictures are those of their folders: {counts}"
    else:
        splits = split_by_name(names)
        note = split_note(file.name, splits)
    others = [str(other.relative_to(root)) for other in unsplit_files(root) if other != file]
    if others:
        notes.append(f"{file.name} is read, other annotation files are left out: {', '.join(others)}")
    if split_group(root.name) and has_splits(root.absolute().parent):
        above = root.absolute().parent
        notes.append(f"{above} has the splits {', '.join(list_splits(above))}; give that folder to use them")
    split_of = {places[name]: split for split, each in splits.items() for name in each}
    parts = _divide(content | {"images": images}, split_of, list(splits))
    parts = {split: part | {"notes": [note, *notes]} for split, part in parts.items()}
    whole = content | {"images": images, "notes": notes}
    return parts | {ALL: whole} | ({} if own.lower() in ANNOTATIONS else {own: whole})


def _image_folder(file: Path, root: Path, own: str, names: list[str]) -> Path:
    try:
        return find_image_folder(root, Found(own, file))
    except FileNotFoundError:  # none has a likely name or holds the first pictures
        there = _pictures_by_name(root, root)
        if not names or any(_last_name(name) in there for name in names):
            return root
        missing = missing_file(resolved(root, names[0]))
        raise FileNotFoundError(f"{file}: none of its {len(names)} pictures is there: {missing}") from None


def _file_name(image: Any) -> str | None:
    """An image's file name; None of an entry without one, which the reader of annotations names."""
    name = image.get("file_name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else None


def _split_by_folder(names: list[str]) -> dict[str, list[str]]:
    """The splits that the pictures' own folders name, if all do and there is a train and another."""
    splits: dict[str, list[str]] = {}
    for name in names:
        groups = {split_group(part) for part in re.split(r"[\\/]", name)[:-1]} - {()}
        if len(groups) != 1:
            return {}
        splits.setdefault(groups.pop()[0], []).append(name)
    return splits if "train" in splits and len(splits) > 1 else {}


def _divide(content: dict[str, Any], split_of: dict[str, str], splits: list[str]) -> dict[str, dict[str, Any]]:
    """A content for each split. What belongs to no picture stays with the first, where the reader names it."""
    images: dict[str, list[Any]] = {split: [] for split in splits}
    annotations: dict[str, list[Any]] = {split: [] for split in splits}
    by_id: dict[Hashable, str] = {}
    for image in content["images"]:
        split = split_of.get(_file_name(image) or "", splits[0])
        images[split].append(image)
        number = image.get("id") if isinstance(image, dict) else None
        if isinstance(number, (int, str)):
            by_id.setdefault(number, split)
    entries = content.get("annotations")
    for entry in entries if isinstance(entries, list) else []:
        number = entry.get("image_id") if isinstance(entry, dict) else None
        split = by_id.get(number, splits[0]) if isinstance(number, (int, str)) else splits[0]
        annotations[split].append(entry)
    parts = {split: content | {"images": images[split]} for split in splits}
    if isinstance(entries, list):
        parts = {split: part | {"annotations": annotations[split]} for split, part in parts.items()}
    return parts


def _find_pictures(names: list[str], root: Path, folder: Path) -> tuple[dict[str, str], list[str]]:
    """The absolute path of each file name, and what is to be told of them."""
    found = {name: resolved(folder, name) for name in names}
    lost = [name for name, path in found.items() if not os.path.isfile(path)]  # noqa: PTH113  # never raises
    notes = []
    if lost:
        pictures = _pictures_by_name(root, folder)
        last_names = Counter(_last_name(name) for name in names)
        taken = {
            name: pictures[last][0]
            for name in lost
            if last_names[last := _last_name(name)] == 1 and len(pictures.get(last, ())) == 1
        }
        found |= taken
        if taken:
            first = next(iter(taken))
            notes = [
                f"{len(taken)} of {len(names)} file names lead nowhere; the pictures of the same last name are taken, "
                f"as {taken[first]} for {first}"
            ]
    return {name: os.path.abspath(path) for name, path in found.items()}, notes  # noqa: PTH100  # keeps the user's links


def _last_name(name: str) -> str:
    """What follows the last folder; Label Studio also writes ``/data/local-files/?d=folder/a.jpg``."""
    return re.split(r"[\\/]|\?d=", name)[-1]


def _pictures_by_name(root: Path, folder: Path) -> dict[str, list[Path]]:
    """The files in the folders in which pictures are looked for, by their names."""
    folders = dict.fromkeys([folder, root, *(root / name for name in PICTURE_FOLDERS)])
    pictures: dict[str, list[Path]] = {}
    for each in folders:
        for name in list_folder(each, ENTRIES).files:
            pictures.setdefault(name, []).append(each / name)
    return pictures
