"""What a folder or file is that is not read, and how to convert it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from ...images import picture_suffixes
from ..nearby import PICTURE_FOLDERS
from .coco import ANNOTATIONS, OTHER_TASKS, has_splits, split_group
from .sniff import json_kind, list_folder
from .unread_files import DATUM, JSON_KINDS, describe_table, line_kind, read_head
from .unsplit import find_unsplit, unsplit_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENTRIES = 2000
"""Entries of a folder that are looked at."""
FOLDERS = 60
"""Folders that are looked at."""
SAMPLES = 5
"""Files of a kind that are opened."""
EXPECTED = "expected COCO's JSON, YOLO with a data.yaml, or Pascal VOC (docs/data.md)"
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
CLASS_LISTS = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt", "classes.names", "_darknet.labels")
"""Files with the names of the classes, one a line."""


class _Look(NamedTuple):
    """What was seen of a folder and of those below."""

    root: Path
    files: list[Path]
    folders: list[Path]  # the root first

    def by_suffix(self, *suffixes: str) -> list[Path]:
        return [file for file in self.files if file.suffix.lower() in suffixes]

    def folder(self, *names: str) -> Path | None:
        return next((each for each in self.folders[1:] if each.name.lower() in names), None)

    def short(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def describe_unread(root: Path) -> str:
    """Says in one line what a folder or file looks like that is given for data, and what to do about it.

    At most ``FOLDERS`` folders and ``ENTRIES`` entries of each are looked at.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unread import describe_unread
        >>> root = Path(tempfile.mkdtemp())
        >>> describe_unread(root).replace(str(root), "data")
        "data: an empty folder; expected COCO's JSON, YOLO with a data.yaml, or Pascal VOC (docs/data.md)"
    """
    if not root.is_dir():
        return f"{root}: {_describe_file(root)}"
    look = _look(root)
    told = next((text for test in TESTS if (text := test(look))), None)
    return f"{root}: {told or _unknown(look)}"


def _look(root: Path) -> _Look:
    files: list[Path] = []
    folders = [root]
    for folder in folders:  # grows meanwhile: breadth first
        listing = list_folder(folder, ENTRIES)
        files += [folder / name for name in listing.files]
        if len(folder.relative_to(root).parts) < 3:
            folders += [folder / name for name in listing.folders][: FOLDERS - len(folders)]
    return _Look(root, files, folders)


def _describe_file(file: Path) -> str:
    suffix, folder = file.suffix.lower(), file.absolute().parent
    above = folder.parent if folder.name.lower() in ANNOTATIONS else folder
    kind = json_kind(file) if suffix == ".json" else ""
    if suffix in ARCHIVES:
        return "an archive, expected a folder; unpack it and give the folder"
    if kind == "coco":
        return f"an annotation file, expected a folder; give the folder with its pictures: {above}"
    if kind in JSON_KINDS:
        what, do = JSON_KINDS[kind]
        return f"looks like {what}; {do.replace('{root}', shlex.quote(str(folder)))}"
    if suffix in (".yaml", ".yml"):
        return f"a file, expected a folder; give the one that it is in: {folder}"
    if suffix in (".csv", ".tsv"):
        return describe_table(file)
    if suffix in picture_suffixes():
        return "a picture, expected a folder of annotated pictures; torchdcn detect finds objects in pictures"
    return f"a file, expected a folder; {EXPECTED}"


def _is_data(folder: Path) -> str:
    """The name of the format that a folder is read in, or nothing."""
    from . import find_format

    if has_splits(folder):
        return "COCO"
    try:
        labels = find_format(folder)
    except ValueError:  # it is in a format, but something is wrong, which is told when it is given
        return "labels"
    if labels is not None:
        return labels.name
    return "COCO" if find_unsplit(folder) else ""


def _own(look: _Look) -> str | None:
    """Of a folder that is read by way of a conversion, but was given to the reader of COCO's format."""
    if name := _is_data(look.root):
        return f"a folder in the format {name} that is converted first: open it with torchdcn.data.open_dataset"
    several = unsplit_files(look.root)
    if len(several) > 1:
        names = ", ".join(map(look.short, several[:SAMPLES]))
        return (
            f"{len(several)} annotation files in COCO's format, of which no name says the split ({names}); name them "
            "annotations/instances_train.json and annotations/instances_val.json"
        )
    return None


def _empty(look: _Look) -> str | None:
    if look.files:
        return None
    return f"{'an empty folder' if len(look.folders) == 1 else 'only empty folders'}; {EXPECTED}"


def _archived(look: _Look) -> str | None:
    archives = look.by_suffix(*ARCHIVES)
    if not archives or any(map(_is_picture, look.files)):
        return None
    return f"holds archives, such as {look.short(archives[0])}; unpack them"


def _nested(look: _Look) -> str | None:
    """Of a folder above that of the data."""
    found = [folder for folder in look.folders[1:] if _is_data(folder)]
    found = [folder for folder in found if not any(other in folder.parents for other in found)]
    if not found:
        return None
    if len(found) == 1:
        return f"the data set is in a folder below; give that one: {found[0]}"
    return f"{len(found)} data sets are in folders below; give one of them: {', '.join(map(str, found[:SAMPLES]))}"


def _part(look: _Look) -> str | None:
    """Of a folder within that of the data."""
    names = {name.lower() for name in (*PICTURE_FOLDERS, *ANNOTATIONS, "ImageSets", "Main")}
    folder = look.root.absolute()
    for _ in range(2):
        if folder.name.lower() not in names and not split_group(folder.name):
            return None
        folder = folder.parent
        if _is_data(folder):
            return f"a part of the data set {folder}; give that folder"
    return None


def _darknet(look: _Look) -> str | None:
    found = [file for file in look.files if file.name.lower() in ("obj.data", "obj.names", "_darknet.labels")]
    if not found:
        return None
    what = f"looks like YOLO 1.1, Darknet's format ({look.short(found[0])})"
    return f"{what}; export it as Ultralytics YOLO or COCO, or {_datum(look, 'yolo')}"


def _supervisely(look: _Look) -> str | None:
    if (look.root / "meta.json").is_file() and look.folder("ann") is not None:
        return _looks_like("supervisely", look)
    return None


def _json(look: _Look) -> str | None:
    files = look.by_suffix(".json")
    known = [file for file in files if OTHER_TASKS.match(file.name)]
    keypoints = [file for file in known if file.name.lower().startswith("person_keypoints")]
    if keypoints:
        names = keypoints[0].name, keypoints[0].name.lower().replace("person_keypoints", "instances")
        return f"looks like COCO's keypoints alone; their boxes can be used: copy {names[0]} to {names[1]}"
    for file in itertools.islice(itertools.chain(known, files), 4 * SAMPLES):
        if (kind := json_kind(file)) in JSON_KINDS:
            return _looks_like(kind, look)
    return None


def _looks_like(kind: str, look: _Look) -> str:
    what, do = JSON_KINDS[kind]
    return f"looks like {what}; {do.replace('{root}', shlex.quote(str(look.root)))}"


def _datum(look: _Look, name: str) -> str:
    return DATUM.format(root=shlex.quote(str(look.root)), format=name)


def _tables(look: _Look) -> str | None:
    files = look.by_suffix(".csv", ".tsv")
    told = [text for file in files[:SAMPLES] if (text := describe_table(file))]
    return next((text for text in told if "looks like" in text), told[0] if told else None)


def _records(look: _Look) -> str | None:
    found = [file for file in look.files if re.search(r"\.(tf)?records?(-\d+-of-\d+)?$", file.name)]
    if found:
        do = _datum(look, "tf_detection_api")
        return f"looks like TensorFlow's TFRecord ({found[0].name}); export COCO from the tool that made it, or {do}"
    tables = look.by_suffix(".parquet", ".arrow")
    if tables:
        return f"looks like a data set of Hugging Face ({tables[0].name}); write its pictures and COCO's JSON from it"
    lines = [file for file in look.by_suffix(".jsonl") if file.name.startswith("metadata")]
    if lines:
        return f"looks like Hugging Face's ImageFolder ({lines[0].name}); convert it to COCO's JSON"
    return None


def _cvat(look: _Look) -> str | None:
    for file in look.by_suffix(".xml")[:SAMPLES]:
        if "<annotations" in (head := read_head(file)) and ("<image" in head or "<track" in head or "<meta" in head):
            return f"looks like CVAT's XML ({file.name}); export it from CVAT as COCO 1.0, with the images"
    return None


def _text_labels(look: _Look) -> str | None:
    """YOLO without a data.yaml, and other tools' labels in text files."""
    files = [file for file in look.by_suffix(".txt") if file.name.lower() not in CLASS_LISTS]
    labels = sorted(files, key=lambda file: "label" not in file.parent.name.lower())[: 4 * SAMPLES]
    kinds = {file: line_kind(file) for file in labels}
    if any((file.parent.name, kind) == ("gt", "mot") for file, kind in kinds.items()):
        do = _datum(look, "mot_seq")
        return f"looks like the MOT challenge's tracks (gt/gt.txt); {do}"
    if "kitti" in kinds.values():
        do = _datum(look, "kitti")
        return f"looks like KITTI's labels; {do}"
    if "dota" in kinds.values():
        return "looks like DOTA's labels, four corners a line; oriented boxes are not read: convert them to COCO's JSON"
    return _yolo(look) if "yolo" in kinds.values() else None


def _yolo(look: _Look) -> str:
    lists = [file for name in CLASS_LISTS for file in look.files if file.name.lower() == name]
    names = [line.strip() for line in read_head(lists[0]).splitlines() if line.strip()] if lists else ["class 0", "..."]
    listed = f"names: [{', '.join(json.dumps(name, ensure_ascii=False) for name in names)}]"
    splits: dict[str, str] = {}
    for folder in look.folders[1:]:
        group = split_group(folder.name)
        pictures = next((each for each in (folder / "images", folder) if _has_pictures(each)), None)
        if group and pictures and "labels" not in folder.parts:
            splits.setdefault(group[0], look.short(pictures))
    lines = [f"'{split}: {folder}'" for split, folder in sorted(splits.items())]
    if "train" in splits and "val" in splits:
        do = "write"
    else:
        lines = ["'train: images/train'", "'val: images/val'"]
        do = (
            "move about one in five pictures to images/val and their labels to labels/val, the others to images/train "
            "and labels/train, and write"
        )
    return f"looks like YOLO's labels without a data.yaml; {do} {look.root / 'data.yaml'} with the lines " + ", ".join(
        [*lines, f"'{listed}'"]
    )


def _masks(look: _Look) -> str | None:
    folder = look.folder("masks", "mask", "segmentationclass", "segmentationobject", "labelids", "gtfine")
    if folder is None or not _has_pictures(folder):
        return None
    return f"looks like masks as pictures ({look.short(folder)}), which are not read; convert them to COCO's JSON"


def _pictures(look: _Look) -> str | None:
    pictures = list(filter(_is_picture, look.files))
    if not pictures:
        return None
    known = {*(name.lower() for name in PICTURE_FOLDERS), look.root.name.lower()}
    names = {picture.parent.name for picture in pictures}
    classes = sorted(name for name in names if name.lower() not in known and not split_group(name))
    if len(classes) > 1:
        return (
            f"looks like a folder of pictures for each class ({', '.join(classes[:3])}), as ImageNet's, without boxes; "
            "label the objects, with CVAT or Label Studio, and export COCO"
        )
    return (
        f"pictures without labels, such as {look.short(pictures[0])}; label the objects, with CVAT or Label Studio, "
        "and export COCO; torchdcn detect finds objects in pictures without labels"
    )


def _unknown(look: _Look) -> str:
    names = [look.short(path) for path in (*look.folders[1:], *look.files)][:SAMPLES]
    return f"no data set that is known, found {', '.join(names)}; {EXPECTED}"


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in picture_suffixes()


def _has_pictures(folder: Path) -> bool:
    return any(map(_is_picture, map(folder.joinpath, list_folder(folder, ENTRIES).files)))


TESTS: list[Callable[[_Look], str | None]] = [
    _empty,
    _own,
    _nested,
    _part,
    _darknet,
    _supervisely,
    _json,
    _records,
    _cvat,
    _text_labels,
    _tables,
    _archived,
    _masks,
    _pictures,
]
"""In the order in which they are asked; the first that knows the folder tells."""
