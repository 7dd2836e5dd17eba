"""COCO annotation files: reading one, and the faults that make one unusable."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from .rle import rle_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    found, _ = examined(content)
    if found:
        raise ValueError(f"{path}: {found[0]}")
    return content  # type: ignore[no-any-return]  # without a fault it is a dict


def examined(content: Any) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Looks for every fault of a parsed annotation file.

    An entry that lacks a key, or has a value of another kind than it should, is named and then left aside: it is not
    judged further, nor is what depends on it, such as the masks on an image without a size. Lists that are missing come
    alone, since nothing else can be judged without them.

    Returns:
        The faults, each in one line with the id of its entry; and the lists without the entries that were left aside,
        or nothing if a list is missing.

    Example:
        >>> from torchdcn.data.annotations import examined
        >>> fish = {"id": 3, "image_id": 1, "category_id": 2, "bbox": [4, 4, 8, 8]}
        >>> image = {"id": 1, "file_name": "1.jpg", "width": 32, "height": "32"}
        >>> faults, usable = examined(
        ...     {"images": [image], "annotations": [fish], "categories": [{"id": 2, "name": "fish"}]}
        ... )
        >>> faults, len(usable["images"]), len(usable["annotations"])
        (["image 1: expected width and height as integers above 0, got 32 x '32'"], 0, 1)
    """
    found = _missing_lists(content)
    if found:
        return found, {}
    usable: dict[str, list[dict[str, Any]]] = {name: [] for name in KEYS}
    for name in KEYS:
        for index, entry in enumerate(content[name]):
            wrong = _entry_faults(name, index, entry)
            found += wrong
            usable[name] += [] if wrong else [entry]
    for name, entries in usable.items():
        seen = set()
        for entry in entries:
            if entry["id"] in seen:
                found.append(f"{name}: the id {entry['id']!r} is there twice")
            seen.add(entry["id"])
    usable["images"] = _without_faults(usable["images"], _image_faults, found)
    if not content["categories"]:
        found.append("the list categories is empty")
    names = Counter(str(category["name"]) for category in usable["categories"])
    for name, count in names.items():
        if count > 1:  # a class is known by its name from here on
            ids = [category["id"] for category in usable["categories"] if str(category["name"]) == name]
            found.append(f"categories: the name {name!r} is there {count} times (ids {', '.join(map(str, ids))})")
    usable["annotations"] = _without_faults(usable["annotations"], _value_faults, found)
    found += _reference_faults(content, usable)
    return found, usable


def _without_faults(
    entries: list[dict[str, Any]], faults: Callable[[dict[str, Any]], list[str]], found: list[str]
) -> list[dict[str, Any]]:
    sound = []
    for entry in entries:
        wrong = faults(entry)
        if wrong:
            found += wrong
        else:
            sound.append(entry)
    return sound


def _missing_lists(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"expected a JSON object with the lists {', '.join(KEYS)}, got {_short(content)}"]
    missing = [name for name in KEYS if not isinstance(content.get(name), list)]
    return [f"the list {name} is missing (COCO format has {', '.join(KEYS)})" for name in missing]


def _entry_faults(name: str, index: int, entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{name}[{index}]: expected a JSON object, got {_short(entry)}"]
    missing = [key for key in KEYS[name] if key not in entry]
    found = [f"{name}[{index}] (id {entry.get('id', 'missing')}): the key {key} is missing" for key in missing]
    if name == "categories" and not isinstance(entry.get("name", ""), (str, int, float)):
        found.append(f"{name}[{index}]: expected the name as text, got {_short(entry['name'])}")
    if "id" in entry and type(entry["id"]) is not int:
        found.append(f"{name}[{index}]: expected an integer id, got {_short(entry['id'])}")
    return found


def _image_faults(image: dict[str, Any]) -> list[str]:
    found, name = [], f"image {image['id']}"
    if not isinstance(image["file_name"], str):
        found.append(f"{name}: file_name is not a string: {_short(image['file_name'])}")
    if not all(type(image[side]) is int and image[side] > 0 for side in ("width", "height")):
        size = f"{_short(image['width'])} x {_short(image['height'])}"
        found.append(f"{name}: expected width and height as integers above 0, got {size}")
    return found


def _value_faults(entry: dict[str, Any]) -> list[str]:
    name = f"annotation {entry['id']}"
    strange = [key for key in ("image_id", "category_id") if type(entry[key]) is not int]
    found = [f"{name}: expected {key} as an integer, got {_short(entry[key])}" for key in strange]
    if entry.get("iscrowd", 0) not in (0, 1):
        found.append(f"{name}: expected iscrowd to be 0 or 1, got {_short(entry['iscrowd'])}")
    if not _are_numbers(entry["bbox"]) or len(entry["bbox"]) != 4:
        found.append(f"{name}: expected bbox as four numbers x, y, width, height, got {_short(entry['bbox'])}")
    if "area" in entry and not _are_numbers([entry["area"]]):
        found.append(f"{name}: expected area as a number, got {_short(entry['area'])}")
    return found


def _reference_faults(content: dict[str, Any], usable: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """What does not fit to its image or category. Entries that were left aside are still there to be referred to."""
    known = {
        name: {entry["id"] for entry in content[name] if isinstance(entry, dict) and type(entry.get("id")) is int}
        for name in ("images", "categories")
    }
    images = {image["id"]: image for image in usable["images"]}
    for entry in usable["annotations"]:
        name = f"annotation {entry['id']}"
        if entry["image_id"] not in known["images"]:
            yield f"{name}: its image_id {entry['image_id']} is not among the images"
        if entry["category_id"] not in known["categories"]:
            yield f"{name}: its category_id {entry['category_id']} is not among the categories"
        image = images.get(entry["image_id"])
        if image is not None and entry.get("segmentation"):
            fault = _segmentation_fault(entry["segmentation"], image["height"], image["width"])
            if fault:
                yield f"{name}: {fault}"


def _segmentation_fault(segmentation: Any, height: int, width: int) -> str:
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
