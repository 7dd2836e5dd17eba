"""A detector's figures on a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..data.images import read_image
from .coco import Evaluation, evaluate_truth
from .ground_truth import IouType, Truth, for_evaluator, read_ground_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..detections import Detections


class CocoFolder(Protocol):
    """What :func:`evaluate_detector` needs of a data set; :class:`torchdcn.data.CocoDetection` has it.

    Where a data set has a method ``read_image(index)``, that gives the pixels ``[H, W, 3]`` uint8; else the files are
    read as COCO's are.
    """

    annotation_file: Path
    image_ids: list[int | str]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def image_path(self, index: int) -> Path:
        """The file of the ``index``-th image."""
        ...


class _Part(NamedTuple):
    """What one process has found, by the images' index."""

    found: dict[int, tuple[bool, list[dict[str, Any]]]]  # whether the detector gives masks, and the results
    bad: dict[int, str]  # why an image can't be read


class Processes(Protocol):
    """The processes that share an evaluation; :mod:`torchdcn.training.distributed` has them."""

    @property
    def first(self) -> bool:
        """Whether this one computes the figures."""
        ...

    def shard(self, items: Sequence[int]) -> list[int]:
        """This one's part of what all have."""
        ...

    def raise_together(self) -> AbstractContextManager[None]:
        """A block whose errors end all of them."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """All their values, on the first."""
        ...

    def broadcast_from_first(self, value: Any) -> Any:
        """The first one's value, on all."""
        ...


def evaluate_detector(
    detector: Callable[[NDArray[np.uint8]], Detections],
    dataset: CocoFolder,
    progress: Callable[[int, int], None] | None = None,
    iou_types: Sequence[IouType] | None = None,
    processes: Processes | None = None,
    skip_bad: Callable[[int, str], None] | None = None,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Runs a detector over every image of a data set and compares what it finds with the annotations.

    Images are read as the data set reads them: in the orientation of their annotations, whatever EXIF says. See
    :func:`evaluations_of` for more than the figures.

    Args:
        detector: A :class:`torchdcn.Detector`, or any function from ``[H, W, 3]`` uint8 to ``Detections``.
        dataset: A :class:`torchdcn.data.CocoDetection`. Classes are matched by name; where no name of the
            detector's is the data set's, by position.
        progress: Called with (images done, images in all) after each image.
        iou_types: By default "bbox", and "segm" if the detector gives masks.
        processes: Others that call this at the same time: each looks at its share of the images.
        skip_bad: Passes over images that can't be read, and leaves their annotations out too: the figures are those of
            the data set without them. Called with the index and the reason of each when all have been seen, with
            ``processes`` on the first one. By default the first such image ends the evaluation.

    Returns:
        The figures as :func:`evaluate_coco` gives them, and all detections as COCO-format results; with ``processes``
        the figures of all images on every one, and all detections on the first.

    Raises:
        ValueError: The detector's classes are not the data set's, or it gives masks and the data set has none. Known
            before the first image for a :class:`torchdcn.Detector`. Or an image has another size than annotated, or
            with ``skip_bad`` none can be read.
        OSError: An image can't be read.
    """
    evaluations, results = evaluations_of(detector, dataset, progress, iou_types, processes, skip_bad)
    return {kind: evaluation.metrics for kind, evaluation in evaluations.items()}, results


def evaluations_of(
    detector: Callable[[NDArray[np.uint8]], Detections],
    dataset: CocoFolder,
    progress: Callable[[int, int], None] | None = None,
    iou_types: Sequence[IouType] | None = None,
    processes: Processes | None = None,
    skip_bad: Callable[[int, str], None] | None = None,
) -> tuple[dict[str, Evaluation], list[dict[str, Any]]]:
    """As :func:`evaluate_detector`, with figures by class and precision over recall."""
    names = getattr(detector, "class_names", None)
    settings = getattr(getattr(detector, "model", None), "settings", None)
    masks = bool(getattr(settings, "masks", False)) if iou_types is None else "segm" in iou_types
    truth = check_fit(names, masks, dataset)  # first: the pictures may take hours
    indices = range(len(dataset.image_ids))
    if processes is None:
        part = _detections(detector, dataset, indices, truth, progress, skip=skip_bad is not None)
        return _evaluated(truth, dataset, [part], iou_types, skip_bad)
    evaluated: tuple[dict[str, Evaluation], list[dict[str, Any]]] = {}, []
    with processes.raise_together():
        mine = processes.shard(indices)
        part = _detections(detector, dataset, mine, truth, progress, skip=skip_bad is not None)
    parts = processes.gather(part)
    with processes.raise_together():
        if processes.first:
            evaluated = _evaluated(truth, dataset, parts, iou_types, skip_bad)
    return processes.broadcast_from_first(evaluated[0]), evaluated[1]


def _detections(
    detector: Callable[[NDArray[np.uint8]], Detections],
    dataset: CocoFolder,
    indices: Sequence[int],
    truth: Truth,
    progress: Callable[[int, int], None] | None,
    *,
    skip: bool,
) -> _Part:
    part = _Part({}, {})
    for done, index in enumerate(indices, 1):
        image_id = dataset.image_ids[index]
        try:
            image = _read(dataset, index, truth)
        except (OSError, ValueError) as error:
            if not skip:
                raise
            part.bad[index] = str(error)
        else:
            detections = detector(image)
            ids = _category_ids(detections.class_names, dataset)
            results = [result for result in detections.to_coco(image_id, ids) if result["category_id"] != _NOT_THERE]
            part.found[index] = (detections.masks is not None, results)
        if progress is not None:
            progress(done, len(indices))
    return part


def _read(dataset: CocoFolder, index: int, truth: Truth) -> NDArray[np.uint8]:
    reads: Callable[[int], NDArray[np.uint8]] | None = getattr(dataset, "read_image", None)
    if reads is not None:
        return reads(index)
    return read_image(dataset.image_path(index), truth.images[dataset.image_ids[index]])


def _evaluated(
    truth: Truth,
    dataset: CocoFolder,
    parts: Sequence[_Part],
    iou_types: Sequence[IouType] | None,
    skip_bad: Callable[[int, str], None] | None,
) -> tuple[dict[str, Evaluation], list[dict[str, Any]]]:
    # In the data set's order, whoever found them: of detections with one score the first comes first.
    found = dict(sorted(item for part in parts for item in part.found.items()))
    bad = dict(sorted(item for part in parts for item in part.bad.items()))
    if bad and not found:
        none = f"none of the {len(bad)} images can be read, the first one: {next(iter(bad.values()))}"
        raise ValueError(f"{dataset.annotation_file}: {none}")
    if bad and skip_bad is not None:
        truth = truth.without({dataset.image_ids[index] for index in bad})
        for index, why in bad.items():
            skip_bad(index, why)
    results = [result for _, those in found.values() for result in those]
    masks = any(has_masks for has_masks, _ in found.values())
    kinds: Sequence[IouType] = iou_types or (("bbox", "segm") if masks else ("bbox",))
    return evaluate_truth(truth, results, kinds), results


def check_fit(class_names: Sequence[str] | None, masks: bool, dataset: CocoFolder) -> Truth:
    """Sees to it that a data set can judge a detector, before work of hours.

    Args:
        class_names: The detector's; None if not known yet.
        masks: Whether its masks are to be judged.
        dataset: The data set.

    Returns:
        What the annotation file says.

    Raises:
        ValueError: The classes differ, or an annotation has no box or, with ``masks``, no sound mask.
    """
    truth = read_ground_truth(dataset.annotation_file)
    if class_names is not None:
        _category_ids(class_names, dataset)
    kinds: Sequence[IouType] = ("bbox", "segm") if masks else ("bbox",)
    try:
        for kind in kinds:
            for_evaluator(truth, kind)
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
