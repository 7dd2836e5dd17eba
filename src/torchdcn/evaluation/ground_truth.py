"""What an evaluation compares with: a COCO annotation file, checked, with ids that evaluators can use as numbers."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from ..data.annotations import count, grouping_categories, iscrowd_fault, other_kind
from ..data.rle import rle_fault
from ..data.segmentation import is_degenerate, is_missing, shorten, sound_polygons
from ..data.text import read_json

if TYPE_CHECKING:
    from collections.abc import Collection

IouType = Literal["bbox", "segm"]
GroundTruth = str | os.PathLike[str] | Mapping[str, Any]
Id = int | str
ARGUMENT = "ground_truth_json"


class ImageSize(NamedTuple):
    """An image's size in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Truth:
    """A checked ground truth.

    Attributes:
        name: What messages call it.
        images: The images' sizes by their ids, in ascending order, numbers before text.
        categories: The categories' names by their ids, likewise.
        annotations: The file's entries, with ids as :func:`as_id` gives them.
    """

    name: str
    images: dict[Id, ImageSize]
    categories: dict[Id, str]
    annotations: list[dict[str, Any]]

    def image_numbers(self) -> dict[Id, int]:
        """A number for each image: pycocotools looks at images in the order of their ids, which decides ties."""
        return {image_id: number for number, image_id in enumerate(self.images, 1)}

    def category_numbers(self) -> dict[Id, int]:
        """A number for each category, in their order."""
        return {category_id: number for number, category_id in enumerate(self.categories, 1)}

    def without(self, image_ids: Collection[Id]) -> Truth:
        """The same without some images and what is annotated on them."""
        images = {image_id: size for image_id, size in self.images.items() if image_id not in image_ids}
        annotations = [entry for entry in self.annotations if entry["image_id"] not in image_ids]
        return replace(self, images=images, annotations=annotations)


def as_id(value: Any, where: str) -> Id:
    """An id as Python's int or str, whichever kind of number NumPy, torch or JSON has made of it.

    Raises:
        ValueError: It is neither an integer nor text.

    Example:
        >>> import numpy as np
        >>> from torchdcn.evaluation.ground_truth import as_id
        >>> as_id(np.int64(7), "image_id"), as_id("007", "image_id")
        (7, '007')
    """
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            if isinstance(value, Real) and float(value).is_integer():
                return int(float(value))
    raise ValueError(f"{where}: expected an integer or text, got {shorten(value)}")


def is_box(box: Any) -> bool:
    """Whether this is x, y, width, height as finite numbers."""
    try:
        return len(box) == 4 and all(math.isfinite(value) for value in box)
    except TypeError:  # None, or no numbers
        return False


def is_finite(value: Any) -> bool:
    """Whether this is a finite number."""
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def require_keys(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises where an entry lacks one of the keys.

    Raises:
        ValueError: It is no mapping, or a key is missing.
    """
    missing = [key for key in keys if key not in entry] if isinstance(entry, Mapping) else keys
    if missing:
        raise ValueError(f'{where} has no "{missing[0]}"')


def read_ground_truth(source: GroundTruth) -> Truth:
    """Reads an ``instances_*.json``, or takes its content, and checks what every figure needs of it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not in COCO's format; the message begins with ``ground_truth_json`` and names the entry.
    """
    if isinstance(source, Mapping):
        name, content = "the mapping given", source
    else:
        name = str(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"{ARGUMENT}: {name} does not exist")
        try:
            content = read_json(Path(source))
        except ValueError as error:
            raise ValueError(f"{ARGUMENT}: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise ValueError(f'{ARGUMENT}: expected COCO\'s format with a list "{key}" in {name}')
    return Truth(name, _images(content, name), _categories(content, name), _annotations(content, name))


def _images(content: Mapping[str, Any], name: str) -> dict[Id, ImageSize]:
    images: dict[Id, ImageSize] = {}
    for index, entry in enumerate(content["images"]):
        where = f"{ARGUMENT}: {name}: images[{index}]"
        require_keys(entry, ["id", "height", "width"], where)
        image_id = as_id(entry["id"], f"{where}: id")
        if image_id in images:
            raise ValueError(f"{where}: the id {image_id!r} is there twice")
        try:
            height, width = operator.index(entry["height"]), operator.index(entry["width"])
        except TypeError:
            height = width = 0
        if height < 1 or width < 1:
            got = f"{shorten(entry['width'])} x {shorten(entry['height'])}"
            raise ValueError(f"{where} (id {image_id!r}): expected width and height as integers above 0, got {got}")
        images[image_id] = ImageSize(height, width)
    return dict(sorted(images.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _categories(content: Mapping[str, Any], name: str) -> dict[Id, str]:
    categories: dict[Id, str] = {}
    entries = []
    for index, entry in enumerate(content["categories"]):
        where = f"{ARGUMENT}: {name}: categories[{index}]"
        require_keys(entry, ["id"], where)
        category_id = as_id(entry["id"], f"{where}: id")
        if category_id in categories:
            raise ValueError(f"{where}: the id {category_id!r} is there twice")
        categories[category_id] = str(entry.get("name", category_id))
        entries.append({**entry, "id": category_id, "name": categories[category_id]})
    used = [{"category_id": entry.get("category_id")} for entry in content["annotations"] if isinstance(entry, Mapping)]
    for group in grouping_categories(entries, used):
        del categories[group["id"]]
    return dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _annotations(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    known = {as_id(image["id"], ARGUMENT) for image in content["images"]}
    annotations = []
    for index, entry in enumerate(content["annotations"]):
        where = f"{ARGUMENT}: {name}: annotations[{index}]"
        require_keys(entry, ["image_id", "category_id"], where)
        where += f" (id {entry['id']!r})" if "id" in entry else ""
        ids = {key: as_id(entry[key], f"{where}: {key}") for key in ("image_id", "category_id")}
        if ids["image_id"] not in known:
            near = other_kind(ids["image_id"], known)
            raise ValueError(f"{where} has the image_id {ids['image_id']!r}, which no image has{near}")
        if "bbox" in entry and not is_box(entry["bbox"]):
            raise ValueError(f"{where} has the bbox {entry['bbox']}, expected finite x, y, width, height")
        if "area" in entry and not is_finite(entry["area"]):
            raise ValueError(f"{where}: expected area as a number, got {shorten(entry['area'])}")
        if fault := iscrowd_fault(entry):
            raise ValueError(f"{where}: {fault}")
        annotations.append({**entry, **ids})
    return annotations


def for_evaluator(truth: Truth, iou_type: IouType) -> dict[str, Any]:
    """COCO content that the evaluator may write to: every id a number, annotations from 1, where 0 means "no match".

    Objects whose mask has no area are left out of what masks are compared with: no detection can match them.

    Raises:
        ValueError: An annotation has no box, or no mask, which ``iou_type`` needs, or its mask is damaged.
    """
    needed = "bbox" if iou_type == "bbox" else "segmentation"
    images, categories = truth.image_numbers(), truth.category_numbers()
    annotations: list[dict[str, Any]] = []
    for index, given in enumerate(truth.annotations):
        where = f"{ARGUMENT}: annotation {given.get('id', index)}"
        if given["category_id"] not in categories:
            continue  # as pycocotools does: a file may be cut down to some of its categories
        if needed not in given or (needed == "segmentation" and is_missing(given[needed])):
            raise ValueError(f'{where} has no "{needed}", which "{iou_type}" needs')
        if needed == "segmentation" and _has_empty_mask(given):
            continue
        size = truth.images[given["image_id"]]
        annotation = {**given, "id": len(annotations) + 1, "image_id": images[given["image_id"]]}
        annotation["category_id"] = categories[given["category_id"]]
        if needed == "segmentation":
            annotation["segmentation"] = to_rle(given["segmentation"], size, where)
        if "area" not in given:
            annotation["area"] = _area(annotation, size, where)
        annotations.append(annotation)
    return {
        "images": [
            {"id": number, "height": truth.images[image_id].height, "width": truth.images[image_id].width}
            for image_id, number in images.items()
        ],
        "categories": [{"id": number, "name": truth.categories[i]} for i, number in categories.items()],
        "annotations": annotations,
    }


def warn_of_empty_masks(truth: Truth) -> None:
    """Warns where objects are left out of the masks' figures."""
    empty = [entry.get("id", index) for index, entry in enumerate(truth.annotations) if _has_empty_mask(entry)]
    if empty:
        warnings.warn(
            f"{truth.name}: {count(len(empty), 'object')} whose mask has no area left out of the masks' figures, the "
            f"first: annotation {empty[0]}",
            stacklevel=3,
        )


def _has_empty_mask(entry: Mapping[str, Any]) -> bool:
    segmentation = entry.get("segmentation")
    return isinstance(segmentation, list) and not is_missing(segmentation) and is_degenerate(segmentation)


def to_rle(segmentation: Any, size: ImageSize, where: str) -> dict[str, Any]:
    """Polygons or run lengths, plain or compressed, to compressed run lengths of the image's size.

    Raises:
        ValueError: They can't be read.
    """
    if isinstance(segmentation, Mapping):
        fault = rle_fault(segmentation, size.height, size.width)  # the decoder would go on for ever in a damaged one
        if fault:
            raise ValueError(f"{where}: segmentation: {fault}")
    try:
        polygons = sound_polygons(segmentation)
        if polygons == []:
            return dict(coco_mask.encode(np.zeros(size, np.uint8, order="F")))
        rle: dict[str, Any] = coco_mask.segmToRle(polygons, size.width, size.height)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where} has a segmentation that cannot be read: {error}") from error
    return rle


def _area(annotation: Mapping[str, Any], size: ImageSize, where: str) -> float:
    if not is_missing(annotation.get("segmentation")):
        return float(coco_mask.area(to_rle(annotation["segmentation"], size, where)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])
