"""Everything that is wrong with a data set, at once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotations import examined
from .coco import find_split, no_objects
from .converters import PICTURES, LabelsError
from .folders import coco_folder
from .images import read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLACK = 1.0
"""Pixels that boxes and masks may reach beyond their image: labelling tools round."""
FEW = 10
"""Objects below which a class is said to have few."""
MOST = 0.95
"""Share of all objects above which a class is said to have nearly all."""


@dataclass
class Report:
    """What :func:`check_folder` has found, a line each. Faults are to be mended; warnings may be as meant."""

    counts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pictures: dict[bytes, str] = field(default_factory=dict, repr=False)
    """What has been read: the hash of a file, and the first image that is such a file."""

    def lines(self) -> list[str]:
        """All of it to read."""
        total = f"{_count(len(self.faults), 'fault')}, {_count(len(self.warnings), 'warning')}"
        named = [*(f"fault: {text}" for text in self.faults), *(f"warning: {text}" for text in self.warnings)]
        return [*self.counts, *named, total]


def check_folder(data: str | Path, progress: Callable[[int, int], None] | None = None) -> Report:
    """Looks for all faults of a data set's splits ``train`` and ``val``; reads every image.

    Entries of the annotations that can't be used are named, and the rest is checked and counted without them.

    Faults are: files that are missing, no pictures, or of another size than said; boxes that reach outside by more than
    a pixel or have no width or height; areas of 0; unknown categories and images; ids that are there twice; masks of
    the wrong size, outside, or damaged; splits with different categories; no object to train on. Warnings are of
    classes with no or few objects or with nearly all, of objects or images that are there twice (also one in train, one
    in val), of masks that only some objects have, and of pictures that nobody has annotated.

    Args:
        data: What ``--data`` takes.
        progress: Called with (images read, images in all), for each split, and before that where labels are converted.

    Raises:
        FileNotFoundError: There is no such folder.

    Example:
        >>> import tempfile
        >>> from torchdcn.data import make_synthetic
        >>> from torchdcn.data.check import check_folder
        >>> root = make_synthetic(tempfile.mkdtemp() + "/scenes", train=20, val=2, size=64, seed=1)
        >>> check_folder(root).faults
        []
    """
    report = Report()
    classes = {}
    for split in ("train", "val"):
        try:
            file, folder = find_split(coco_folder(data, progress, split), split)
        except LabelsError as error:
            report.faults += error.faults
            return report
        except ValueError as error:  # a data.yaml that leads nowhere
            report.faults.append(str(error))
            return report
        except FileNotFoundError as error:
            if not Path(data).is_dir():
                raise
            report.faults.append(str(error))
            continue
        found = _check_split(split, file, folder, report, progress)
        if found is not None:
            classes[split] = found
    if len(classes) == 2:
        # Training refuses a val with classes that train has not.
        alone = sorted(classes["val"] - classes["train"])
        report.faults += [f"val: the category {name!r} (id {number}) is not in train" for number, name in alone]
    return report


def _check_split(
    split: str, file: Path, folder: Path, report: Report, progress: Callable[[int, int], None] | None
) -> set[tuple[int, str]] | None:
    """The classes of a split, if all of them can be told."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        report.faults.append(f"{file}: not a JSON file: {error}")
        return None
    faults, usable = examined(content)
    report.faults += [f"{file}: {fault}" for fault in faults]
    if not usable:
        return None
    report.faults += [f"{file}: {fault}" for fault in _geometry_faults(usable)]
    crowds = [entry for entry in usable["annotations"] if entry.get("iscrowd")]
    if len(crowds) == len(content["annotations"]):
        where, lines = (file, report.faults) if split == "train" else (split, report.warnings)
        lines.append(f"{where}: {no_objects([folder / image['file_name'] for image in usable['images']])}")
    _check_images(split, usable, folder, report, progress)
    report.warnings += [f"{split}: {text}" for text in (*_suspicions(usable), *_unlisted(content, folder))]
    report.counts.append(f"{file}: {_counts(usable)}")
    if len(usable["categories"]) < len(content["categories"]):
        return None
    return {(category["id"], str(category["name"])) for category in usable["categories"]}


def _counts(content: dict[str, Any]) -> str:
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = Counter(names.get(entry["category_id"], "unknown") for entry in content["annotations"])
    listed = ", ".join(f"{name} {objects.get(name, 0)}" for name in names.values())
    return f"{_count(len(content['images']), 'image')}, {_count(len(content['annotations']), 'object')} ({listed})"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _geometry_faults(content: dict[str, Any]) -> Iterator[str]:
    images = {image["id"]: image for image in content["images"]}
    for entry in content["annotations"]:
        image = images.get(entry["image_id"])
        name = f"annotation {entry['id']}" + (f" on {image['file_name']}" if image else "")
        x, y, width, height = entry["bbox"]
        if width <= 0 or height <= 0:
            yield f"{name}: its bbox {entry['bbox']} has no width or no height"
        elif "area" in entry and not entry["area"] > 0:
            yield f"{name}: its area is {entry['area']}, expected above 0"
        if image is None:
            continue
        size = f"its image of {image['width']} x {image['height']}"
        beyond = max(-x, -y, x + width - image["width"], y + height - image["height"])
        if beyond > SLACK:
            yield f"{name}: its bbox {entry['bbox']} reaches outside of {size}"
        polygons = entry.get("segmentation")
        if isinstance(polygons, list) and _beyond(polygons, image["width"], image["height"]) > SLACK:
            yield f"{name}: its mask reaches outside of {size}"


def _beyond(polygons: list[Any], width: float, height: float) -> float:
    try:
        return max(
            (max(-min(p[0::2]), -min(p[1::2]), max(p[0::2]) - width, max(p[1::2]) - height) for p in polygons),
            default=0.0,
        )
    except (TypeError, ValueError, IndexError):
        return 0.0  # no polygon: named already


def _check_images(
    split: str, content: dict[str, Any], folder: Path, report: Report, progress: Callable[[int, int], None] | None
) -> None:
    """Reads every image whole: a file that is cut short shows only then."""
    images = content["images"]
    with ThreadPoolExecutor(2) as pool:  # decoders work beside each other
        for done, (image, (fault, digest)) in enumerate(zip(images, pool.map(partial(_read, folder), images)), 1):  # noqa: B905  # map gives as many as it gets
            if fault:
                report.faults.append(fault)
            elif digest in report.pictures:
                report.warnings.append(
                    f"{split}: the image {image['file_name']} is the same file as {report.pictures[digest]}"
                )
            report.pictures.setdefault(digest, f"{split}'s {image['file_name']}")
            if progress is not None:
                progress(done, len(images))


def _read(folder: Path, image: dict[str, Any]) -> tuple[str, bytes]:
    """What is wrong with an image, and the hash of its file."""
    path = folder / str(image["file_name"])
    try:
        read_image(path, (image["height"], image["width"]))
        return "", hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except (OSError, ValueError) as error:
        return str(error), b""


def _suspicions(content: dict[str, Any]) -> Iterator[str]:
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    entries = content["annotations"]
    objects = Counter(entry["category_id"] for entry in entries)
    if not entries:
        return  # said already
    few = [f"{name} {objects[number]}" for number, name in names.items() if 0 < objects[number] < FEW]
    none = [name for number, name in names.items() if not objects[number]]
    if few:
        yield f"classes with fewer than {FEW} objects: {', '.join(few)}"
    if none:
        yield f"classes without objects: {', '.join(none)}"
    for number, name in names.items():
        if len(names) > 1 and objects[number] > MOST * len(entries):
            yield f"the class {name!r} has {objects[number]} of all {len(entries)} objects"
    with_objects = {entry["image_id"] for entry in entries}
    empty = sum(image["id"] not in with_objects for image in content["images"])
    if empty > len(content["images"]) / 2:
        yield f"{empty} of {_count(len(content['images']), 'image')} have no objects"
    seen: dict[Any, int] = {}
    for entry in entries:
        key = entry["image_id"], entry["category_id"], tuple(entry["bbox"])
        if key in seen:
            yield f"annotation {entry['id']}: the same box and class as annotation {seen[key]}"
        seen.setdefault(key, entry["id"])
    without = [entry["id"] for entry in entries if not entry.get("segmentation")]
    if without and len(without) < len(entries):
        first = f"the first: annotation {without[0]}"
        yield f"{_count(len(without), 'object')} without a mask where others have one, {first}"


def _unlisted(content: dict[str, Any], folder: Path) -> Iterator[str]:
    listed = {str(image.get("file_name")) for image in content["images"] if isinstance(image, dict)}
    unlisted = [p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.name not in listed]
    if unlisted and not any("/" in name for name in listed):
        yield f"{_count(len(unlisted), 'picture')} in {folder} without annotations, as {min(unlisted)}"
