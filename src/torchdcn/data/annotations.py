"""COCO annotation files: reading one, the faults that make one unusable, and what is left out of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .segmentation import are_numbers, is_degenerate, is_missing, segmentation_fault, shorten, sound_polygons
from .text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
Entry = dict[str, Any]


@dataclass
class Annotations:
    """The content of an annotation file, without the entries that can't be used.

    Attributes:
        images: The list of that name; annotations and categories likewise. Entries are the file's own.
        faults: What makes the file unusable, a line each, with the id of the entry.
        notes: What is left out of a usable file, or was left out where it was converted; a line each.
        complete: Whether all categories could be used.
        without_mask: The ids of the objects that have no segmentation, where masks were judged.
        with_mask: The number of objects that have a mask with an area.
    """

    images: list[Entry] = field(default_factory=list)
    annotations: list[Entry] = field(default_factory=list)
    categories: list[Entry] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True
    without_mask: list[int | str] = field(default_factory=list)
    with_mask: int = 0

    @property
    def crowds(self) -> list[Entry]:
        """The annotations that are crowds (``iscrowd`` = 1): regions that nothing is learned from."""
        return [entry for entry in self.annotations if entry.get("iscrowd", 0)]


def read_annotations(path: Path, *, masks: bool = True) -> Annotations:
    """Reads a COCO annotation file and checks everything that training and evaluation rely on.

    Args:
        path: A JSON file with the lists ``images``, ``annotations`` and ``categories`` of
            https://cocodataset.org/#format-data; in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        masks: Whether masks are needed. With False nobody looks at a ``segmentation``.

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
        >>> read_annotations(path).categories[0]["name"]
        'eel'
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such annotation file")
    found = check_annotations(read_json(path), masks=masks)
    if found.faults:
        raise ValueError(f"{path}: {found.faults[0]}")
    return found


def check_annotations(content: Any, *, masks: bool = True) -> Annotations:
    """Looks for every fault of a parsed annotation file.

    An entry that lacks a key, or has a value of another kind than it should, is named and then left aside: it is not
    judged further, nor is what depends on it, such as the masks on an image without a size. Lists that are missing come
    alone, since nothing else can be judged without them.

    Ids of images and annotations are integers or text, ids of categories integers. A category that no annotation refers
    to and that is the supercategory of another one is left out: it groups classes and is none.

    Args:
        content: What ``json.load`` gives.
        masks: Whether to judge the masks.

    Example:
        >>> from torchdcn.data.annotations import check_annotations
        >>> fish = {"id": 3, "image_id": 1, "category_id": 2, "bbox": [4, 4, 8, 8]}
        >>> image = {"id": 1, "file_name": "1.jpg", "width": 32, "height": "32"}
        >>> found = check_annotations(
        ...     {"images": [image], "annotations": [fish], "categories": [{"id": 2, "name": "fish"}]}
        ... )
        >>> found.faults, len(found.images), len(found.annotations)
        (["image 1: expected width and height as integers above 0, got 32 x '32'"], 0, 1)
    """
    found = Annotations()
    found.faults += _missing_lists(content)
    if found.faults:
        return found
    notes = content.get("notes")
    found.notes += [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    for name in KEYS:
        setattr(found, name, _sound_entries(name, content[name], found.faults))
    _check_repeated_ids(found)
    found.images = _without_faults(found.images, _image_faults, found.faults)
    _check_categories(content["categories"], found)
    found.annotations = _without_faults(found.annotations, _value_faults, found.faults)
    found.faults += _reference_faults(content, found)
    if masks:
        _check_masks(found)
    return found


def id_fault(value: Any, *, text: bool = True) -> str:
    """Says why a value can't be an id, or "".

    Args:
        value: The id. Numbers without a fraction are integers, as some writers give them.
        text: Whether text is one too.

    Example:
        >>> from torchdcn.data.annotations import id_fault
        >>> id_fault("img_7"), id_fault(7), id_fault(None)
        ('', '', 'expected an integer or text as id, got None')
    """
    if type(value) is int or (text and isinstance(value, str)) or (type(value) is float and value.is_integer()):
        return ""
    return f"expected an integer{' or text' if text else ''} as id, got {shorten(value)}"


def iscrowd_fault(entry: Any) -> str:
    """Says what is wrong with an annotation's ``iscrowd``, or ""."""
    value = entry.get("iscrowd", 0)
    if isinstance(value, (int, float)) and value in (0, 1):
        return ""
    return f"expected iscrowd to be 0 or 1, got {shorten(value)}"


def size_fault(image: Any) -> str:
    """Says what is wrong with an image's ``width`` and ``height``, or ""."""
    if all(type(image[side]) is int and image[side] > 0 for side in ("width", "height")):
        return ""
    size = f"{shorten(image['width'])} x {shorten(image['height'])}"
    return f"expected width and height as integers above 0, got {size}"


def _missing_lists(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"expected a JSON object with the lists {', '.join(KEYS)}, got {shorten(content)}"]
    missing = [name for name in KEYS if not isinstance(content.get(name), list)]
    return [f"the list {name} is missing (COCO format has {', '.join(KEYS)})" for name in missing]


def _sound_entries(name: str, entries: list[Any], faults: list[str]) -> list[Entry]:
    sound = []
    for index, entry in enumerate(entries):
        wrong = _entry_faults(name, index, entry)
        faults += wrong
        if not wrong:
            sound.append(entry)
    return sound


def _entry_faults(name: str, index: int, entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{name}[{index}]: expected a JSON object, got {shorten(entry)}"]
    missing = [key for key in KEYS[name] if key not in entry]
    found = [f"{name}[{index}] (id {entry.get('id', 'missing')}): the key {key} is missing" for key in missing]
    if name == "categories" and not isinstance(entry.get("name", ""), (str, int, float)):
        found.append(f"{name}[{index}]: expected the name as text, got {shorten(entry['name'])}")
    if "id" in entry and (fault := id_fault(entry["id"], text=name != "categories")):
        found.append(f"{name}[{index}]: {fault}")
    return found


def _check_repeated_ids(found: Annotations) -> None:
    for name in KEYS:
        counts = Counter(entry["id"] for entry in getattr(found, name))
        found.faults += [
            f"{name}: the id {number!r} is there {'twice' if count == 2 else f'{count} times'}"
            for number, count in counts.items()
            if count > 1
        ]


def _without_faults(entries: list[Entry], faults_of: Callable[[Entry], list[str]], faults: list[str]) -> list[Entry]:
    sound = []
    for entry in entries:
        wrong = faults_of(entry)
        faults += wrong
        if not wrong:
            sound.append(entry)
    return sound


def _image_faults(image: Entry) -> list[str]:
    found, name = [], f"image {image['id']}"
    if not isinstance(image["file_name"], str):
        found.append(f"{name}: file_name is not a string: {shorten(image['file_name'])}")
    if fault := size_fault(image):
        found.append(f"{name}: {fault}")
    return found


def _check_categories(given: list[Any], found: Annotations) -> None:
    """Leaves grouping categories out and names the faults of the others."""
    found.complete = len(found.categories) == len(given)
    if not given:
        found.faults.append("the list categories is empty")
    groups = grouping_categories(found.categories, found.annotations)
    for group in groups:
        found.notes.append(
            f"the category {str(group['name'])!r} (id {group['id']}) is left out: no annotation refers to it, and it "
            "is the supercategory of others"
        )
    found.categories = [category for category in found.categories if category not in groups]
    ids_of: dict[str, list[Any]] = {}
    for category in found.categories:
        ids_of.setdefault(str(category["name"]), []).append(category["id"])
    for name, ids in ids_of.items():
        if len(ids) > 1:  # a class is known by its name from here on
            listed = ", ".join(map(str, ids))
            found.faults.append(f"categories: the name {name!r} is there {len(ids)} times (ids {listed})")


def grouping_categories(categories: list[Entry], annotations: list[Entry]) -> list[Entry]:
    """The categories that group others and have no annotation: Roboflow's exports begin with such a one.

    Example:
        >>> from torchdcn.data.annotations import grouping_categories
        >>> parts = {"id": 0, "name": "parts", "supercategory": "none"}
        >>> grouping_categories([parts, {"id": 1, "name": "bolt", "supercategory": "parts"}], [])[0]["name"]
        'parts'
    """
    used = {entry["category_id"] for entry in annotations if isinstance(entry.get("category_id"), (int, float, str))}
    groups = [
        category
        for category in categories
        if category["id"] not in used
        and any(other.get("supercategory") == str(category["name"]) for other in categories if other is not category)
    ]
    return groups if len(groups) < len(categories) else []


def _value_faults(entry: Entry) -> list[str]:
    name = f"annotation {entry['id']}"
    found = [
        f"{name}: {key}: {fault}"
        for key in ("image_id", "category_id")
        if (fault := id_fault(entry[key], text=key == "image_id"))
    ]
    if fault := iscrowd_fault(entry):
        found.append(f"{name}: {fault}")
    if not are_numbers(entry["bbox"]) or len(entry["bbox"]) != 4:
        found.append(f"{name}: expected bbox as four numbers x, y, width, height, got {shorten(entry['bbox'])}")
    if "area" in entry and not are_numbers([entry["area"]]):
        found.append(f"{name}: expected area as a number, got {shorten(entry['area'])}")
    return found


def _reference_faults(content: Entry, found: Annotations) -> Iterator[str]:
    """What refers to no image or category. Entries that were left aside are still there to be referred to."""
    known = {
        name: {entry["id"] for entry in content[name] if isinstance(entry, dict) and not id_fault(entry.get("id"))}
        for name in ("images", "categories")
    }
    for entry in found.annotations:
        for key, name in (("image_id", "images"), ("category_id", "categories")):
            if entry[key] not in known[name]:
                near = other_kind(entry[key], known[name])
                yield f"annotation {entry['id']}: its {key} {entry[key]!r} is not among the {name}{near}"


def other_kind(value: Any, known: set[Any]) -> str:
    """A hint where an id is there as a number but was given as text, or the other way round; else ""."""
    other: Any = str(value)
    if isinstance(value, str):
        other = int(value) if value.lstrip("-").isdigit() else None
    if other is None or other not in known:
        return ""
    kinds = ("a number", "text") if isinstance(value, str) else ("text", "a number")
    return f" (there is {other!r}, which is {kinds[0]}, and this is {kinds[1]}: write both alike)"


def _check_masks(found: Annotations) -> None:
    images = {image["id"]: image for image in found.images}
    slivers, empty = [], []
    dropped = 0
    for entry in found.annotations:
        image, segmentation = images.get(entry["image_id"]), entry.get("segmentation")
        crowd = bool(entry.get("iscrowd", 0))
        if is_missing(segmentation):
            found.without_mask += [] if crowd else [entry["id"]]
        elif image is None:
            continue
        elif fault := segmentation_fault(segmentation, image["height"], image["width"]):
            found.faults.append(f"annotation {entry['id']}: {fault}")
        elif is_degenerate(segmentation):
            empty.append(entry["id"])
        else:
            found.with_mask += not crowd
            if isinstance(segmentation, list) and (less := len(segmentation) - len(sound_polygons(segmentation))):
                dropped += less
                slivers.append(entry["id"])
    if slivers:
        found.notes.append(
            f"{count(dropped, 'polygon')} of fewer than three points or without area left out of the masks of "
            f"{count(len(slivers), 'object')}, the first: annotation {slivers[0]}"
        )
    if empty:
        found.notes.append(
            f"{count(len(empty), 'object')} whose mask has no area (fewer than three points, or no pixel) left out "
            f"where masks are learned and judged, the first: annotation {empty[0]}"
        )


def count(number: int, thing: str) -> str:
    """A number of things in words.

    Example:
        >>> from torchdcn.data.annotations import count
        >>> count(1, "object"), count(2, "object")
        ('1 object', '2 objects')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"
