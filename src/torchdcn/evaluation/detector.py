"""A detector's figures on a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..data.images import read_image
from .coco import IouType, evaluate_coco, ground_truth_for, images_by_id, read_ground_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..detections import Detections


class CocoFolder(Protocol):
    """What :func:`evaluate_detector` needs of a data set; :class:`torchdcn.data.CocoDetection` has it."""

    annotation_file: Path
    image_ids: list[int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def image_path(self, index: int) -> Path:
        """The file of the ``index``-th image."""
        ...


class Processes(Protocol):
    """The processes that share an evaluation; :mod:`torchdcn.training.distributed` has them."""

    @property
    def first(self) -> bool:
        """Whether this one computes the figures."""
        ...

    def share(self, items: Sequence[int]) -> list[int]:
        """This one's part of what all have."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """A block whose errors end all of them."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """All their values, on the first."""
        ...

    def from_first(self, value: Any) -> Any:
        """The first one's value, on all."""
        ...


def evaluate_detector(
    detector: Callable[[NDArray[np.uint8]], Detections],
    dataset: CocoFolder,
    progress: Callable[[int, int], None] | None = None,
    iou_types: Sequence[IouType] | None = None,
    processes: Processes | None = None,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Runs a detector over every image of a data set and compares what it finds with the annotations.

    Images are read as the data set reads them: in the orientation of their annotations, whatever EXIF says.

    Args:
        detector: A :class:`torchdcn.Detector`, or any function from ``[H, W, 3]`` uint8 to ``Detections``.
        dataset: A :class:`torchdcn.data.CocoDetection`. Classes are matched by name; where no name of the
            detector's is the data set's, by position.
        progress: Called with (images done, images in all) after each image.
        iou_types: By default "bbox", and "segm" if the detector gives masks.
        processes: Others that call this at the same time: each looks at its share of the images.

    Returns:
        The figures as :func:`evaluate_coco` gives them, and all detections as COCO-format results; with ``processes``
        the figures of all images on every one, and all detections on the first.

    Raises:
        ValueError: The detector's classes are not the data set's, or it gives masks and the data set has none. Known
            before the first image for a :class:`torchdcn.Detector`.
        OSError: An image can't be read.
    """
    names = getattr(detector, "class_names", None)
    settings = getattr(getattr(detector, "model", None), "settings", None)
    masks = bool(getattr(settings, "masks", False)) if iou_types is None else "segm" in iou_types
    truth = check_fit(names, masks, dataset)  # first: the pictures may take hours
    images = images_by_id(truth)
    indices = range(len(dataset.image_ids))
    if processes is None:
        return _figures(truth, _detections(detector, dataset, indices, images, progress), iou_types)
    figures: tuple[dict[str, dict[str, float]], list[dict[str, Any]]] = {}, []
    with processes.together():
        mine = processes.share(indices)
        found = _detections(detector, dataset, mine, images, progress)
    parts = processes.gather(found)
    with processes.together():
        if processes.first:
            figures = _figures(truth, {index: one for part in parts for index, one in part.items()}, iou_types)
    return processes.from_first(figures[0]), figures[1]


def _detections(
    detector: Callable[[NDArray[np.uint8]], Detections],
    dataset: CocoFolder,
    indices: Sequence[int],
    images: Mapping[int, Mapping[str, Any]],
    progress: Callable[[int, int], None] | None,
) -> dict[int, tuple[bool, list[dict[str, Any]]]]:
    """By index: whether the detector gives masks, and what it has found."""
    found = {}
    for done, index in enumerate(indices, 1):
        image_id = dataset.image_ids[index]
        size = (int(images[image_id]["height"]), int(images[image_id]["width"]))
        detections = detector(read_image(dataset.image_path(index), size))
        ids = _category_ids(detections.class_names, dataset)
        results = [result for result in detections.to_coco(image_id, ids) if result["category_id"] != _NOT_THERE]
        found[index] = (detections.masks is not None, results)
        if progress is not None:
            progress(done, len(indices))
    return found


def _figures(
    truth: Mapping[str, Any], found: dict[int, tuple[bool, list[dict[str, Any]]]], iou_types: Sequence[IouType] | None
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    # In the data set's order, whoever found them: of detections with one score the first comes first.
    results = [result for index in sorted(found) for result in found[index][1]]
    masks = any(has_masks for has_masks, _ in found.values())
    kinds: Sequence[IouType] = iou_types or (("bbox", "segm") if masks else ("bbox",))
    return evaluate_coco(truth, results, kinds), results


def check_fit(class_names: Sequence[str] | None, masks: bool, dataset: CocoFolder) -> Mapping[str, Any]:
    """Sees to it that a data set can judge a detector, before work of hours.

    Args:
        class_names: The detector's; None if not known yet.
        masks: Whether its masks are to be judged.
        dataset: The data set.

    Returns:
        The content of the annotation file.

    Raises:
        ValueError: The classes differ, or an annotation has no box or, with ``masks``, no sound mask.
    """
    truth = read_ground_truth(dataset.annotation_file)
    if class_names is not None:
        _category_ids(class_names, dataset)
    kinds: Sequence[IouType] = ("bbox", "segm") if masks else ("bbox",)
    try:
        for kind in kinds:
            ground_truth_for(truth, kind)
    except ValueError as error:
        raise ValueError(f"{dataset.annotation_file}: {error}") from error
    return truth


_NOT_THERE = -(2**31)  # the category of a class that the data set has not


def _category_ids(class_names: Sequence[str], dataset: CocoFolder) -> list[int]:
    if tuple(class_names) == tuple(dataset.class_names):  # even where two classes share a name
        return list(dataset.category_ids)
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    common = ids.keys() & set(class_names)
    if len(common) == len(ids):
        return [ids.get(name, _NOT_THERE) for name in class_names]
    if not common and len(class_names) == len(ids):
        return list(dataset.category_ids)
    raise ValueError(
        f"dataset: its {len(ids)} classes ({_some(dataset.class_names)}) are not the detector's"
        f" {len(class_names)} ({_some(class_names)}); use weights trained on this data set"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
