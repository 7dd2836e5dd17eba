"""The reader of data sets in COCO's format."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .annotations import Annotations, count, read_annotations
from .formats.coco import find_split
from .images import read_image
from .nearby import resolved
from .segmentation import is_degenerate, is_missing, sound_polygons

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..images import Orientation


class _Object(NamedTuple):
    image: int  # its place in image_ids
    box: tuple[float, float, float, float]  # x1, y1, x2, y2, clipped to the image
    entry: dict[str, Any]


class CocoDetection(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Pictures with boxes, classes and masks from a folder in COCO's format, checked when opened.

    An item is ``(image, target)``: the image uint8 ``[3, H, W]`` in RGB, and a target with

    - ``boxes`` float32 ``[n, 4]``: x1, y1, x2, y2 in pixels, clipped to the image,
    - ``labels`` int64 ``[n]``: 0-based, see ``class_names`` and ``category_ids``,
    - ``masks`` uint8 ``[n, H, W]`` of 0 and 1, if the file has segmentations,
    - ``area`` float32 ``[n]``, ``iscrowd`` int64 ``[n]``, ``image_id`` as in the file, an int or text.

    Boxes without width or height after clipping are left out, and with masks the objects whose mask has no area; what
    is left out is counted in ``notes``. Images without objects stay, with ``n`` = 0.
    The image, boxes and masks are ``torchvision.tv_tensors``, so ``torchvision.transforms.v2`` moves them
    together.

    Args:
        root: Folder with ``annotations/instances_{split}.json`` and the images in ``{split}/``; COCO's own
            names (``instances_train2017.json``, ``train2017/``) and the layouts of labelling tools
            (:func:`~torchdcn.data.formats.coco.find_split`) are found too.
        split: ``"train"``, ``"val"`` or any other name there is.
        transforms: Called with (image, target), gives an item.
        crowds: Keep regions marked as crowds (``iscrowd`` = 1), which training must not learn from and
            evaluation ignores.
        masks: Give masks. With False nobody looks at a segmentation, so that a file where only some objects
            have one, or damaged ones, can be used for boxes.

    Attributes:
        annotation_file: The JSON file.
        image_ids: The ids of the images, in the order of the file.
        category_ids: The file's category ids in ascending order; label ``i`` stands for ``category_ids[i]``.
        class_names: Their names; label ``i`` is ``class_names[i]``.
        has_masks: Whether targets have masks.
        notes: What is left out of the file, a line each.

    Raises:
        FileNotFoundError: The folder, the annotation file or the image folder is missing.
        ValueError: The annotation file is broken; the message names the first fault and the entry's id. An
            item raises it where a mask can't be decoded or an image has another size than the file says.
        OSError: From an item: the image can't be read.

    Example:
        >>> import tempfile
        >>> from torchdcn.data import CocoDetection, make_synthetic
        >>> root = make_synthetic(tempfile.mkdtemp() + "/scenes", train=2, val=2, size=64, seed=1)
        >>> data = CocoDetection(root, "val")
        >>> image, target = data[0]
        >>> image.shape, target["boxes"].shape[1]
        (torch.Size([3, 64, 64]), 4)
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transforms: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None,
        *,
        crowds: bool = False,
        masks: bool = True,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.transforms = transforms
        self.annotation_file, self.image_folder = find_split(self.root, split)
        content = read_annotations(self.annotation_file, masks=masks)
        categories = sorted(content.categories, key=lambda category: category["id"])
        self.category_ids: tuple[int, ...] = tuple(int(category["id"]) for category in categories)
        self.class_names: tuple[str, ...] = tuple(str(category["name"]) for category in categories)
        self.image_ids: list[int | str] = [plain_id(image["id"]) for image in content.images]
        self._file_names: list[str] = [image["file_name"] for image in content.images]
        self._sizes = np.array([(i["height"], i["width"]) for i in content.images], np.int64).reshape(-1, 2)
        self._as_shown = np.array([is_labelled_as_shown(image) for image in content.images], bool)
        self.notes: list[str] = [*content.notes, *crowded_classes(content)]
        objects = self._objects(content.annotations, crowds)
        self.has_masks = masks and self._all_have_masks(objects)
        if self.has_masks:
            objects = [each for each in objects if not is_degenerate(each.entry["segmentation"])]
        self._pack(objects)

    def _objects(self, annotations: list[dict[str, Any]], crowds: bool) -> list[_Object]:
        """The annotations that become objects, image by image."""
        index_of = {image_id: index for index, image_id in enumerate(self.image_ids)}
        sizes = self._sizes.tolist()
        objects, empty = [], []
        for entry in annotations:
            if entry.get("iscrowd", 0) and not crowds:
                continue
            index = index_of[entry["image_id"]]
            height, width = sizes[index]
            x, y, w, h = entry["bbox"]
            box = (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))
            if box[2] > box[0] and box[3] > box[1]:
                objects.append(_Object(index, box, entry))
            else:
                empty.append(entry["id"])
        if empty:
            self.notes.append(
                f"{count(len(empty), 'object')} left out, whose box has no width or height within its image, the "
                f"first: annotation {empty[0]}"
            )
        objects.sort(key=lambda each: each.image)  # stable: within an image the file's order stays
        return objects

    def _all_have_masks(self, objects: list[_Object]) -> bool:
        """Whether these objects have masks, for training or evaluation with masks; some that have none are a fault."""
        masks = [each.entry.get("segmentation") for each in objects]
        without = [each.entry["id"] for each, mask in zip(objects, masks, strict=True) if is_missing(mask)]
        if without and len(without) < len(objects):
            raise ValueError(
                f"{self.annotation_file}: annotation {without[0]} has no segmentation but others have; "
                "give every object one, or open the data with masks=False to use the boxes alone"
            )
        return not without and (not masks or not all(map(is_degenerate, masks)))

    def _pack(self, objects: list[_Object]) -> None:
        # Arrays and one run of bytes instead of a million small objects: the workers of a DataLoader are forks,
        # and touching an object's reference count copies its page of memory, until every worker holds all of it.
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        entries = [each.entry for each in objects]
        counts = np.bincount([each.image for each in objects], minlength=len(self.image_ids))
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._boxes = np.array([each.box for each in objects], np.float32).reshape(-1, 4)
        self._labels = np.array([label_of[entry["category_id"]] for entry in entries], np.int64)
        self._crowd = np.array([entry.get("iscrowd", 0) for entry in entries], np.int64)
        self._ids = np.array([repr(entry["id"]).encode() for entry in entries], np.bytes_)
        areas = [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in entries]
        self._areas = np.array(areas, np.float32)
        # pickle writes floats ten times as fast as json
        segmentations = [
            pickle.dumps(sound_polygons(entry["segmentation"])) if self.has_masks else b"" for entry in entries
        ]
        self._segmentation_starts = np.cumsum([0, *map(len, segmentations)], dtype=np.int64)
        self._segmentations = np.frombuffer(b"".join(segmentations), np.uint8)

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_path(self, index: int) -> Path:
        """The file of the ``index``-th image."""
        return resolved(self.image_folder, self._file_names[index])

    def read_image(self, index: int) -> NDArray[np.uint8]:
        """The ``index``-th image's pixels ``[H, W, 3]``, in the orientation of its annotations.

        Raises:
            OSError: The image can't be read.
            ValueError: It has another size than annotated.
        """
        height, width = self._sizes[index].tolist()
        orientation: Orientation = "exif" if self._as_shown[index] else "stored"
        return read_image(self.image_path(index), (height, width), orientation)

    def labels(self, index: int) -> list[int]:
        """The classes of the ``index``-th image's objects, without reading the image."""
        labels: list[int] = self._labels[self._starts[index] : self._starts[index + 1]].tolist()
        return labels

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected one below {len(self)}, the number of images, got {index}")
        index %= len(self)
        pixels = torch.from_numpy(self.read_image(index))
        image = tv_tensors.Image(pixels.permute(2, 0, 1).contiguous())
        target = self.target(index)
        if self.transforms is not None:
            return self.transforms(image, target)
        return image, target

    def target(self, index: int) -> dict[str, Any]:
        """The target of the ``index``-th image, without reading the image and without transforms."""
        height, width = self._sizes[index].tolist()
        own = slice(int(self._starts[index]), int(self._starts[index + 1]))
        boxes = torch.from_numpy(self._boxes[own].copy())
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self._labels[own].copy()),
            "area": torch.from_numpy(self._areas[own].copy()),
            "iscrowd": torch.from_numpy(self._crowd[own].copy()),
            "image_id": self.image_ids[index],
        }
        if self.has_masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(self._masks(own, height, width)))
        return target

    def _masks(self, own: slice, height: int, width: int) -> NDArray[np.uint8]:
        from faster_coco_eval.core import mask as rle

        masks = np.zeros((own.stop - own.start, height, width), np.uint8)
        for row, number in enumerate(range(own.start, own.stop)):
            start, end = self._segmentation_starts[number : number + 2]
            segmentation = pickle.loads(self._segmentations[start:end].data)  # noqa: S301  # written by _pack
            try:
                masks[row] = rle.decode(rle.segmToRle(segmentation, width, height))
            except (ValueError, RuntimeError) as error:
                name = f"{self.annotation_file}: annotation {self._ids[number].decode()}"
                raise ValueError(f"{name}: its mask can't be decoded: {error}") from None
        return masks


def require_objects(dataset: CocoDetection) -> None:
    """Sees to it that there is something to learn from.

    Raises:
        ValueError: No image has an object.

    Example:
        >>> import tempfile
        >>> from torchdcn.data import make_synthetic, open_dataset, require_objects
        >>> root = make_synthetic(tempfile.mkdtemp() + "/scenes", train=2, val=1, size=64, seed=1)
        >>> require_objects(open_dataset(root, "train"))
    """
    if not any(dataset.labels(index) for index in range(len(dataset))):
        pictures = [dataset.image_path(index) for index in range(len(dataset))]
        raise ValueError(f"{dataset.annotation_file}: {no_objects(pictures)}")


def no_objects(pictures: Sequence[Path]) -> str:
    """Says that none of these pictures has an object, and where to look."""
    first = f" (the first: {pictures[0]})" if pictures else ""
    return (
        f"none of the {len(pictures)} images{first} has an object (crowds are none), expected boxes; look whether "
        "the labels are in their place (YOLO: the folder of the same path with labels for images)"
    )


def plain_id(value: float | str) -> int | str:
    """An image's id as it is written into results: some writers give integers a fraction of 0."""
    return value if isinstance(value, str) else int(value)


def is_labelled_as_shown(image: dict[str, Any]) -> bool:
    """Whether an image was labelled turned as its EXIF tag says, as converted labels are; COCO's tools ignore it."""
    return image.get("orientation") == "exif"


def crowded_classes(content: Annotations) -> list[str]:
    """Names the classes whose annotations are all crowds, as CVAT writes what was drawn with its brush.

    Example:
        >>> from torchdcn.data.annotations import Annotations
        >>> from torchdcn.data.coco import crowded_classes
        >>> crowd = {"id": 1, "category_id": 2, "iscrowd": 1}
        >>> crowded_classes(Annotations(annotations=[crowd], categories=[{"id": 2, "name": "nut"}]))
        ["the class 'nut' has no objects: its only annotation is a crowd (iscrowd = 1), from which nothing is learned"]
    """
    crowds = Counter(entry["category_id"] for entry in content.crowds)
    all_of = Counter(entry["category_id"] for entry in content.annotations)
    return [
        f"the class {str(category['name'])!r} has no objects: "
        + (f"its {number} annotations are crowds" if number > 1 else "its only annotation is a crowd")
        + " (iscrowd = 1), from which nothing is learned"
        for category in content.categories
        if (number := crowds[category["id"]]) and number == all_of[category["id"]]
    ]
