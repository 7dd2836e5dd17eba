"""Where Pascal VOC folders have their pictures, ``.xml`` files and lists: in VOC's own layout and in those of tools."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from .coco import split_group
from .labels import has_picture_suffix, is_hidden, read_lines, walk_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANNOTATIONS = ("annotations", "annotation", "xml", "xmls")
IMAGES = ("jpegimages", "images", "image", "img", "imgs")
"""Names of the folders, in any case."""
FLAG = re.compile(r"(.*\S)\s+(?:-?1|0)")
"""A line of a class list: a name, and whether the picture has an object of the class, or (0) a difficult one."""


class Source(NamedTuple):
    """Where the pictures of a split are; without ``split``, of all of them."""

    split: str
    images: Path
    annotations: Path
    listing: Path | None = None


def find_sources(root: Path) -> list[Source]:
    """Finds the splits of a Pascal VOC folder, or nothing.

    Splits are, in this order:

    1. the lists in ``ImageSets/Main``, or in ``ImageSets``, but for those of a class (``cat_train.txt``); without such
       folders those in the folder itself that are named as a split (``train.txt``, PaddleX's ``train_list.txt``)
    2. folders such as ``train`` and ``valid``, with each picture's ``.xml`` beside it, or with folders of pictures and
       of ``.xml`` files of their own
    3. folders such as ``train`` and ``valid`` both in the folder of pictures and in that of ``.xml`` files

    Without any of these all pictures together are one source, be the ``.xml`` files beside them or in a folder of their
    own. A folder that holds but one such data set, as ``VOCdevkit`` holds ``VOC2012``, stands for it.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.voc_layout import find_sources
        >>> find_sources(Path("/nowhere"))
        []
    """
    if not root.is_dir():
        return []
    folders = _list_folders(root)
    inner = [folder for folder in folders if find_folder(folder, "imagesets")]
    if len(inner) == 1 and not find_folder(root, "imagesets"):
        return find_sources(inner[0])
    images, annotations = find_folder(root, *IMAGES), find_folder(root, *ANNOTATIONS)
    if annotations is None or not _has_xml(annotations):  # beside the pictures, in their folder
        annotations = images
    lists = _find_lists(root)
    if lists and annotations and _has_xml(annotations):
        return [Source(name, images or annotations, annotations, path) for name, path in lists.items()]
    found = [source for folder in folders if folder not in (images, annotations) for source in _in_folder(folder)]
    if not found and images and annotations:
        found = list(_in_parallel(images, annotations))
    if found:
        return found
    if annotations and _has_xml(annotations) and (images or _has_labelled(annotations)):
        return [Source("", images or annotations, annotations)]
    return [Source("", root, root)] if _has_labelled(root, below=False) else []


def find_folder(root: Path, *names: str) -> Path | None:
    """The folder of one of these names, in any case; the first name goes first."""
    there = {path.name.lower(): path for path in reversed(_list_folders(root))}
    return next((there[name] for name in names if name in there), None)


def is_xml(name: str) -> bool:
    """Whether a file is an ``.xml`` by its name."""
    return name.lower().endswith(".xml")


def _list_folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:  # there may be a hundred thousand pictures among them
        return sorted(root / each.name for each in entries if not is_hidden(each.name) and each.is_dir())


def _find_lists(root: Path) -> dict[str, Path]:
    """The lists of pictures by the name of their split."""
    sets = find_folder(root, "imagesets")
    if sets is None:
        names = {path.stem.removesuffix("_list"): path for path in _list_texts(root)}
        return {name: path for name, path in names.items() if _is_split(name)}
    main = find_folder(sets, "main")
    files = (_list_texts(main) if main else []) or _list_texts(sets)
    stems = {path.stem for path in files}
    return {path.stem: path for path in files if not _is_of_class(path, stems)}


def _list_texts(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        texts = [each for each in entries if each.name.lower().endswith(".txt") and not is_hidden(each.name)]
        return sorted(folder / each.name for each in texts if each.is_file())


def _is_split(name: str) -> bool:
    return bool(split_group(name)) or name.lower() == "trainval"


def _is_of_class(path: Path, stems: set[str]) -> bool:
    """Whether a list says of each picture of a split whether it has an object of one class."""
    splits = [tail for tail in _tails(path.stem) if tail in stems or _is_split(tail)]
    if not splits:
        return False
    try:
        lines = read_lines(path)
    except (OSError, ValueError):
        return False
    return bool(lines) and all(FLAG.fullmatch(line) for line in lines)


def _tails(stem: str) -> list[str]:
    return [stem[place + 1 :] for place, sign in enumerate(stem) if sign in "_-" and place]


def _in_folder(folder: Path) -> Iterator[Source]:
    """The split that a folder is, if it is one."""
    if find_folder(folder, "imagesets"):
        return  # a data set of its own
    images, annotations = find_folder(folder, *IMAGES), find_folder(folder, *ANNOTATIONS)
    if images and annotations and _has_xml(annotations):
        yield Source(folder.name, images, annotations)
    elif _has_labelled(folder) or (split_group(folder.name) and _has_xml(folder)):
        yield Source(folder.name, folder, folder)


def _in_parallel(images: Path, annotations: Path) -> Iterator[Source]:
    for folder in _list_folders(images):
        other = annotations / folder.name
        if split_group(folder.name) and other.is_dir() and _has_xml(other):
            yield Source(folder.name, folder, other)


def _has_xml(folder: Path) -> bool:
    return any(is_xml(name) for _, names in walk_folder(folder) for name in names)


def _has_labelled(folder: Path, *, below: bool = True) -> bool:
    """Whether a picture has an ``.xml`` of its name beside it."""
    for _, names in walk_folder(folder):
        stems = {name[:-4] for name in names if is_xml(name)}
        if any(has_picture_suffix(name) and name.rsplit(".", 1)[0] in stems for name in names if stems):
            return True
        if not below:
            break
    return False
