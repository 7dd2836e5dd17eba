"""What folders and JSON files hold, told from a part of them: data sets are large."""

from __future__ import annotations

import functools
import itertools
import json
import mmap
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from ..text import MARKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD = 2**20
"""Bytes at the beginning of a JSON file that are looked at for its kind."""
OBJECTS = {
    "labelme": [{"shapes", "imagePath"}, {"shapes", "imageData"}],
    "via": [{"_via_img_metadata"}, {"regions", "shape_attributes"}],
    "supervisely": [{"classTitle"}, {"description", "tags", "size", "objects"}],
    "supervisely classes": [{"classes", "tags", "projectType"}],
    "datumaro": [{"infos", "categories", "items"}, {"info", "categories", "items", "media"}],
    "darwin": [{"dataset", "image", "annotations"}, {"version", "item", "annotations"}],
    "cityscapes": [{"imgHeight", "imgWidth", "objects"}],
}
"""Keys that a tool's JSON has, one of the sets, where the whole file is an object."""
LISTS = {
    "label studio": [{"annotations", "data"}, {"completions", "data"}, {"rectanglelabels"}, {"polygonlabels"}],
    "createml": [{"image", "annotations", "coordinates"}, {"imagefilename", "annotation"}],
    "coco results": [{"image_id", "category_id", "score"}],
    "labelbox": [{"Labeled Data"}, {"data_row"}],
    "bdd100k": [{"labels", "box2d"}],
}
"""The same where it is a list."""


class Listing(NamedTuple):
    """Names in a folder, hidden ones left out, sorted."""

    files: list[str]
    folders: list[str]
    whole: bool  # whether all of the folder was looked at


def list_folder(folder: Path, most: int) -> Listing:
    """Lists the first ``most`` entries of a folder; nothing where it can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.sniff import list_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "train").mkdir()
        >>> (folder / "._train.json").touch()
        >>> list_folder(folder, 100)
        Listing(files=[], folders=['train'], whole=True)
    """
    files: list[str] = []
    folders: list[str] = []
    seen = 0
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, most):
                seen += 1
                if not entry.name.startswith(".") and entry.name != "__MACOSX":  # macOS leaves both on other disks
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        pass
    return Listing(sorted(files), sorted(folders), seen < most)


def json_kind(path: Path) -> str:
    """Whose JSON a file is: ``"coco"``, a kind of COCO's without boxes, or a tool's name; ``""`` where none is known.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.sniff import json_kind
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> _ = path.write_text('{"images": [], "categories": [], "annotations": []}')
        >>> json_kind(path)
        'coco'
    """
    try:
        state = path.stat()
        return _json_kind(path, state.st_mtime_ns, state.st_size)
    except OSError:
        return ""


@functools.lru_cache(1024)
def _json_kind(path: Path, modified: int, size: int) -> str:  # noqa: ARG001  # they tell a file from its older self
    text = _head(path)
    start = text.lstrip()[:1]
    kinds = {"{": OBJECTS, "[": LISTS}.get(start, {})
    if start == "{" and (kind := _coco_kind(path, text)):
        return kind
    return next((kind for kind, tests in kinds.items() if any(_has(text, keys) for keys in tests)), "")


def _coco_kind(path: Path, text: str) -> str:
    opens = {key: re.search(_list_of(key), text) for key in ("images", "annotations", "categories")}
    if not any(opens.values()):
        return ""
    if not (opens["images"] or any(_matches(path, _list_of("images")))):
        return ""
    if not (opens["annotations"] or any(_matches(path, _list_of("annotations")))):
        return "coco without annotations"
    if _has(text, {"segments_info"}):
        return "coco panoptic"
    if _has(text, {"caption"}) and not _has(text, {"bbox"}):
        return "coco captions"
    return "coco"


def _has(text: str, keys: set[str]) -> bool:
    return all(f'"{key}"' in text for key in keys)


def _list_of(key: str) -> str:
    return rf'"{key}"\s*:\s*\['


def file_names(path: Path, most: int) -> list[str]:
    """The first pictures that a COCO file names.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.sniff import file_names
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> _ = path.write_text('{"images": [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}]}')
        >>> file_names(path, 1)
        ['a.jpg']
    """
    values = itertools.islice(_matches(path, r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")'), most)
    try:
        return [str(json.loads(value)) for value in values]
    except ValueError:  # no JSON: told when the file is read whole
        return []


def _encoding(start: bytes) -> str:
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "") or json.detect_encoding(start)


def _head(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(HEAD)
    return start.decode(_encoding(start), errors="ignore")


def _matches(path: Path, pattern: str) -> Iterator[str]:
    """Finds a pattern in a text file of any size; its group if it has one."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            encoding = _encoding(content[:4])
            if encoding.startswith("utf-8"):
                for found in re.finditer(pattern.encode(), content):
                    yield found[found.lastindex or 0].decode(errors="replace")
                return
            text = content[:].decode(encoding, errors="ignore")
    except (OSError, ValueError):  # ValueError: the file is empty
        return
    for other in re.finditer(pattern, text):
        yield other[other.lastindex or 0]
