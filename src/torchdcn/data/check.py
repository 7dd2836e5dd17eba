"""Everything that is wrong with a data set, at once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..images import SIDEWAYS, exif_orientation, is_picture, picture_size
from .annotations import Annotations, check_annotations, count
from .coco import crowded_classes, is_labelled_as_shown, no_objects
from .folders import coco_folder
from .formats import LabelsError
from .formats.coco import find_split
from .images import read_image
from .nearby import resolved
from .text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPLITS = ("train", "val")
"""What is checked: what a training needs."""
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
    listed: dict[Path, set[Path]] = field(default_factory=lambda: defaultdict(set), repr=False)
    """The pictures that annotation files name, by the folder of images: splits may share one."""

    def add_faults(self, faults: list[str]) -> None:
        """Adds faults that may have been found for another split already."""
        self.faults += [fault for fault in faults if fault not in self.faults]

    def lines(self) -> list[str]:
        """All of it to read."""
        total = f"{count(len(self.faults), 'fault')}, {count(len(self.warnings), 'warning')}"
        named = [*(f"fault: {text}" for text in self.faults), *(f"warning: {text}" for text in self.warnings)]
        return [*self.counts, *named, total]


class _Place(NamedTuple):
    """Where a split is."""

    split: str
    file: Path
    folder: Path
    name: str  # what messages call the file: converted labels are in the cache, in a folder that nobody knows


class _Picture(NamedTuple):
    """What was seen when a picture was read."""

    fault: str
    digest: bytes
    turned: bool  # its EXIF tag says that it is not upright, and its annotations don't follow the tag


def check_folder(
    data: str | Path, progress: Callable[[int, int], None] | None = None, *, masks: bool | None = None
) -> Report:
    """Looks for all faults of a data set's splits ``train`` and ``val``; reads every image.

    Entries of the annotations that can't be used are named, and the rest is checked and counted without them. What has
    no fault can be trained on and evaluated.

    Faults are: files that are missing, no pictures, or of another size than said; boxes that reach outside by more than
    a pixel or have no width or height; areas of 0; unknown categories and images; ids that are there twice; masks of
    the wrong size, outside, or damaged; splits with different categories; no object to train on. Warnings are of
    classes with no or few objects or with nearly all, of objects or images that are there twice (also one in train, one
    in val), of masks that only some objects have or that have no area, of pictures that nobody has annotated or that
    carry an EXIF orientation, and of all that is left out.

    Args:
        data: What ``--data`` takes.
        progress: Called with (images read, images in all), for each split, and before that where labels are converted.
        masks: Whether the model to train needs masks (Mask R-CNN) or looks at none (Faster R-CNN). By default both are
            possible: then damaged masks are faults, and missing ones warnings.

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
    for split in SPLITS:
        try:
            place = _find(data, split, progress)
        except LabelsError as error:
            report.add_faults(error.faults)
            continue
        except ValueError as error:  # a data.yaml that leads nowhere
            report.add_faults([str(error)])
            continue
        except FileNotFoundError as error:
            if not Path(data).exists():
                raise
            report.add_faults([str(error)])
            continue
        found = _check_split(place, report, progress, masks)
        if found is not None:
            classes[split] = found
    if len(classes) == 2:
        # Training refuses a val with classes that train has not.
        alone = sorted(classes["val"] - classes["train"])
        report.faults += [f"val: the category {name!r} (id {number}) is not in train" for number, name in alone]
    report.warnings += _unlisted(report.listed)
    return report


def _find(data: str | Path, split: str, progress: Callable[[int, int], None] | None) -> _Place:
    file, folder = find_split(coco_folder(data, progress, split), split)
    name = str(file) if file.is_relative_to(data) else f"{data}: {split}"
    return _Place(split, file, folder, name)


def _check_split(
    place: _Place, report: Report, progress: Callable[[int, int], None] | None, masks: bool | None
) -> set[tuple[int, str]] | None:
    """The classes of a split, if all of them can be told."""
    split, file, folder, name = place
    try:
        content = read_json(file)
    except ValueError as error:
        report.faults.append(str(error))
        return None
    found = check_annotations(content, masks=masks is not False)
    report.faults += [f"{name}: {fault}" for fault in found.faults]
    if not found.categories:
        return None
    report.faults += [f"{name}: {fault}" for fault in _geometry_faults(found, masks)]
    report.faults += [f"{name}: {fault}" for fault in _mask_faults(found, masks)]
    if len(found.crowds) == len(content["annotations"]):
        where, lines = (name, report.faults) if split == "train" else (split, report.warnings)
        lines.append(f"{where}: {no_objects([folder / image['file_name'] for image in found.images])}")
    _check_images(split, found, folder, report, progress)
    notes = [note for note in found.notes if not note.startswith(tuple(f"the split {each} is" for each in SPLITS))]
    suspicions = (*notes, *crowded_classes(found), *_suspicions(found), *_mask_warnings(found, masks))
    report.warnings += [f"{split}: {text}" for text in suspicions]
    report.counts.append(f"{name}: {_counts(found)}")
    report.listed[folder] |= {
        resolved(folder, str(image.get("file_name"))) for image in content["images"] if isinstance(image, dict)
    }
    return {(int(each["id"]), str(each["name"])) for each in found.categories} if found.complete else None


def _counts(content: Annotations) -> str:
    names = {category["id"]: str(category["name"]) for category in content.categories}
    crowds = Counter(names.get(entry["category_id"], "unknown") for entry in content.crowds)
    objects = Counter(names.get(entry["category_id"], "unknown") for entry in content.annotations) - crowds
    listed = ", ".join(f"{name} {_with_crowds(str(objects[name]), crowds[name])}" for name in names.values())
    total = _with_crowds(count(objects.total(), "object"), crowds.total())
    return f"{count(len(content.images), 'image')}, {total} ({listed})"


def _with_crowds(objects: str, crowds: int) -> str:
    return f"{objects} and {count(crowds, 'crowd')}" if crowds else objects


def _geometry_faults(content: Annotations, masks: bool | None) -> Iterator[str]:
    images = {image["id"]: image for image in content.images}
    for entry in content.annotations:
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
        polygons = None if masks is False else entry.get("segmentation")
        if isinstance(polygons, list) and _beyond(polygons, image["width"], image["height"]) > SLACK:
            yield f"{name}: its mask reaches outside of {size}"


def _beyond(polygons: list[Any], width: float, height: float) -> float:
    try:
        return max(
            (max(-min(p[0::2]), -min(p[1::2]), max(p[0::2]) - width, max(p[1::2]) - height) for p in polygons if p),
            default=0.0,
        )
    except (TypeError, ValueError, IndexError):
        return 0.0  # no polygon: named already


def _mask_faults(content: Annotations, masks: bool | None) -> Iterator[str]:
    """What a Mask R-CNN can't be trained on or judged by, where one is to be trained."""
    objects = len(content.annotations) - len(content.crowds)
    if masks and objects and not content.with_mask:
        yield "no object has a mask, which a mask_rcnn model needs; use a faster_rcnn model"
    elif masks and content.without_mask:
        yield f"{_without_mask(content)}; a mask_rcnn model needs a mask of every object, a faster_rcnn model none"


def _mask_warnings(content: Annotations, masks: bool | None) -> Iterator[str]:
    if masks is None and content.with_mask and content.without_mask:
        yield f"{_without_mask(content)}; a faster_rcnn model can be trained on it, a mask_rcnn model can't"


def _without_mask(content: Annotations) -> str:
    few = f"{count(len(content.without_mask), 'object')} without a mask where others have one"
    return f"{few}, the first: annotation {content.without_mask[0]}"


def _check_images(
    split: str, content: Annotations, folder: Path, report: Report, progress: Callable[[int, int], None] | None
) -> None:
    """Reads every image whole: a file that is cut short shows only then."""
    images, turned = content.images, []
    with ThreadPoolExecutor(2) as pool:  # decoders work beside each other
        for done, (image, read) in enumerate(zip(images, pool.map(partial(_read, folder), images)), 1):  # noqa: B905  # map gives as many as it gets
            name = image["file_name"]
            if read.fault:
                report.faults.append(read.fault)
            elif read.digest in report.pictures:
                report.warnings.append(f"{split}: the image {name} is the same file as {report.pictures[read.digest]}")
            if read.digest:
                report.pictures.setdefault(read.digest, f"{split}'s {name}")
            turned += [name] if read.turned else []
            if progress is not None:
                progress(done, len(images))
    if turned:
        report.warnings.append(
            f"{split}: {count(len(turned), 'image')} with an EXIF orientation, the first: {turned[0]}; COCO's tools "
            "ignore it, and so do training and evaluation: look whether the boxes lie right, or store upright pictures"
        )


def _read(folder: Path, image: dict[str, Any]) -> _Picture:
    path, size = resolved(folder, image["file_name"]), (image["height"], image["width"])
    as_shown = is_labelled_as_shown(image)
    try:
        read_image(path, size, "exif" if as_shown else "stored")
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        return _Picture("", digest, not as_shown and _ignores_orientation(path, size))
    except (OSError, ValueError) as error:
        return _Picture(str(error), b"", False)


def _ignores_orientation(path: Path, size: tuple[int, int]) -> bool:
    """Whether a picture has an EXIF orientation that its annotations, by their size, don't follow or may not follow."""
    orientation = exif_orientation(path)
    told_by_size = orientation in SIDEWAYS and size[0] != size[1]
    return orientation in range(2, 9) and not (told_by_size and picture_size(path) == size)


def _suspicions(content: Annotations) -> Iterator[str]:
    names = {category["id"]: str(category["name"]) for category in content.categories}
    entries = [entry for entry in content.annotations if not entry.get("iscrowd", 0)]
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
    empty = sum(image["id"] not in with_objects for image in content.images)
    if empty > len(content.images) / 2:
        yield f"{empty} of {count(len(content.images), 'image')} have no objects"
    seen: dict[Any, int] = {}
    for entry in entries:
        key = entry["image_id"], entry["category_id"], tuple(entry["bbox"])
        if key in seen:
            yield f"annotation {entry['id']}: the same box and class as annotation {seen[key]}"
        seen.setdefault(key, entry["id"])


def _unlisted(listed: dict[Path, set[Path]]) -> Iterator[str]:
    """Pictures that stand beside the annotated ones; where those are in folders below, nobody knows what belongs."""
    for folder, named in listed.items():
        if any(path.parent != folder for path in named):
            continue
        unlisted = sorted(path for path in folder.iterdir() if path not in named and is_picture(path))
        if unlisted:
            yield f"{count(len(unlisted), 'picture')} in {folder} without annotations, as {unlisted[0].name}"
