"""COCO annotation files: reading one, and the faults that make one unusable."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from .rle import rle_fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def read_annotations(path: Path) -> dict[str, Any]:
    """Reads a COCO annotation file and checks everything a reader relies on.

    Args:
        path: A JSON file with the lists ``images``, ``annotations`` and ``categories`` of
            https://cocodataset.org/#format-data.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON or not in COCO format; the message names the first fault and the entry's
            id.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.annotations import read_annotations
        >>> path = Path(tempfile.mkdtemp()) / "instances_val.json"
        >>> _ = path.write_text('{"images": [], "annotations": [], "categories": [{"id": 3, "name": "eel"}]}')
        >>> read_annotations(path)["categories"][0]["name"]
        'eel'
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    for fault in faults(content):
        raise ValueError(f"{path}: {fault}")
    return content  # type: ignore[no-any-return]  # faults() has shown that it is a dict


def faults(content: Any) -> Iterator[str]:
    """Names every fault of a parsed annotation file, each in one line with the id of its entry.

    Lists or keys that are missing come first and alone, since nothing else can be judged without them.
    """
    missing = list(_missing_keys(content))
    if missing:
        yield from missing
        return
    for name in KEYS:
        seen = set()
        for entry in content[name]:
            if entry["id"] in seen:
                yield f"{name}: the id {entry['id']!r} is there twice"
            seen.add(entry["id"])
    for image in content["images"]:
        if not isinstance(image["file_name"], str):
            yield f"image {image['id']!r}: file_name is not a string: {_short(image['file_name'])}"
        if not all(type(image[side]) is int and image[side] > 0 for side in ("width", "height")):
            size = f"{_short(image['width'])} x {_short(image['height'])}"
            yield f"image {image['id']!r}: expected width and height as integers above 0, got {size}"
    if not content["categories"]:
        yield "the list categories is empty"
    names = Counter(str(category["name"]) for category in content["categories"])
    for name, count in names.items():
        if count > 1:  # a class is known by its name from here on
            ids = [category["id"] for category in content["categories"] if str(category["name"]) == name]
            yield f"categories: the name {name!r} is there {count} times (ids {', '.join(map(str, ids))})"
    yield from _annotation_faults(content)


def _missing_keys(content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"expected a JSON object with the lists {', '.join(KEYS)}, got {_short(content)}"
        return
    for name, keys in KEYS.items():
        if not isinstance(content.get(name), list):
            yield f"the list {name} is missing (COCO format has {', '.join(KEYS)})"
            continue
        for index, entry in enumerate(content[name]):
            if not isinstance(entry, dict):
                yield f"{name}[{index}]: expected a JSON object, got {_short(entry)}"
                continue
            for key in keys:
                if key not in entry:
                    yield f"{name}[{index}] (id {entry.get('id', 'missing')}): the key {key} is missing"
            if "id" in entry and type(entry["id"]) is not int:
                yield f"{name}[{index}]: expected an integer id, got {_short(entry['id'])}"


def _annotation_faults(content: dict[str, Any]) -> Iterator[str]:
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for entry in content["annotations"]:
        name = f"annotation {entry['id']}"
        if type(entry["image_id"]) is not int or entry["image_id"] not in images:
            yield f"{name}: its image_id {_short(entry['image_id'])} is not among the images"
            continue
        if type(entry["category_id"]) is not int or entry["category_id"] not in categories:
            yield f"{name}: its category_id {_short(entry['category_id'])} is not among the categories"
        if entry.get("iscrowd", 0) not in (0, 1):
            yield f"{name}: expected iscrowd to be 0 or 1, got {_short(entry['iscrowd'])}"
        if not _are_numbers(entry["bbox"]) or len(entry["bbox"]) != 4:
            yield f"{name}: expected bbox as four numbers x, y, width, height, got {_short(entry['bbox'])}"
        if "area" in entry and not _are_numbers([entry["area"]]):
            yield f"{name}: expected area as a number, got {_short(entry['area'])}"
        if entry.get("segmentation"):
            image = images[entry["image_id"]]
            fault = _segmentation_fault(entry["segmentation"], image["height"], image["width"])
            if fault:
                yield f"{name}: {fault}"


def _segmentation_fault(segmentation: Any, height: Any, width: Any) -> str:
    """Says what is wrong with a segmentation, or ""."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not _are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
                wanted = "a polygon as a list of x, y of at least three points"
                return f"segmentation: expected {wanted}, got {_short(polygon)}"
        return ""
    if not isinstance(segmentation, dict):
        return f"segmentation: expected a list of polygons or an RLE, got {_short(segmentation)}"
    fault = rle_fault(segmentation, height, width)
    return f"segmentation: {fault}" if fault else ""


def _are_numbers(values: Any) -> bool:
    # sum() runs at C speed over the tens of millions of coordinates of the full COCO; strings and lists raise
    # there.
    try:
        return isinstance(values, list) and math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
