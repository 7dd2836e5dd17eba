"""COCO's figures, AP and AR of boxes and masks, by faster-coco-eval: the numbers that pycocotools gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from ..data.annotations import other_kind
from .ground_truth import (
    GroundTruth,
    IouType,
    Truth,
    as_id,
    for_evaluator,
    is_box,
    is_finite,
    read_ground_truth,
    require_keys,
    to_rle,
    warn_of_empty_masks,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from .ground_truth import Id

Result = Mapping[str, Any]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, eq=False)  # holds an array
class Evaluation:
    """Figures of one kind of overlap (boxes or masks).

    Attributes:
        metrics: COCO's twelve, by the names in ``METRICS``; -1 where the ground truth has nothing to measure.
        per_class: Class name to ``{"AP", "AP50", "AR100", "objects"}``; -1 for a class without objects.
        precision: ``[10, 101, classes]``: precision at IoU 0.5, 0.55, .., 0.95 and recall 0, 0.01, .., 1; -1
            for a class without objects.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: NDArray[np.float64]


def evaluate_coco(
    ground_truth_json: GroundTruth,
    results: Sequence[Result],
    iou_types: Sequence[IouType] = ("bbox", "segm"),
) -> dict[str, dict[str, float]]:
    """COCO's twelve figures for detections in COCO's result format; see :func:`evaluate` for more than these.

    The same as pycocotools' to 1e-6: at most 100 detections an image and class, crowds neither found nor
    missed, detections of classes that the ground truth does not know left out, -1 where there is nothing to
    measure (no large object: ``APl`` is -1). Detections are small, medium or large by their mask's area for
    masks and their box's for boxes. An annotation may have any id, 0 too, for which pycocotools takes a match
    for a miss. Ids of images and categories are integers or text; ``"7"``, ``"007"`` and ``7`` are three.

    Args:
        ground_truth_json: Path of an ``instances_*.json``, or its content. Stays as it was.
        results: Dicts with ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or
            ``segmentation`` (RLE or polygons) or both. None found gives AP 0. They stay as they were.
        iou_types: "bbox", "segm" or both.

    Returns:
        ``{"bbox": {"AP": 0.41, ..., "ARl": ...}, "segm": {...}}``, fractions in 0..1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not COCO's format, or a result lacks something or is not of this data set; the
            message begins with the argument and names the entry.

    Example:
        >>> from torchdcn.evaluation import evaluate_coco
        >>> box = {"image_id": 1, "category_id": 3, "bbox": [2.0, 2.0, 10.0, 10.0]}
        >>> truth = {
        ...     "images": [{"id": 1, "height": 32, "width": 32}],
        ...     "categories": [{"id": 3, "name": "cat"}],
        ...     "annotations": [{"id": 1, "area": 100.0, "iscrowd": 0, **box}],
        ... }
        >>> evaluate_coco(truth, [{"score": 0.9, **box}], iou_types=["bbox"])["bbox"]["AP"]
        1.0
    """
    evaluations = evaluate(ground_truth_json, results, iou_types)
    return {iou_type: evaluation.metrics for iou_type, evaluation in evaluations.items()}


def evaluate(
    ground_truth_json: GroundTruth,
    results: Sequence[Result],
    iou_types: Sequence[IouType] = ("bbox", "segm"),
) -> dict[str, Evaluation]:
    """As :func:`evaluate_coco`, with figures by class and precision over recall."""
    if isinstance(iou_types, str) or not iou_types or not set(iou_types) <= {"bbox", "segm"}:
        raise ValueError(f'iou_types: expected "bbox", "segm" or both in a list, got {iou_types!r}')
    return evaluate_truth(read_ground_truth(ground_truth_json), results, iou_types)


def evaluate_truth(truth: Truth, results: Sequence[Result], iou_types: Sequence[IouType]) -> dict[str, Evaluation]:
    """As :func:`evaluate`, for a ground truth that has been read."""
    _check_results(results, truth)
    if "segm" in iou_types:
        warn_of_empty_masks(truth)
    return {iou_type: _evaluate_one(truth, results, iou_type) for iou_type in iou_types}


def _check_results(results: Sequence[Result], truth: Truth) -> None:
    known = False
    for index, result in enumerate(results):
        where = f"results: entry {index}"
        require_keys(result, ["image_id", "category_id", "score"], where)
        image_id = as_id(result["image_id"], f"{where}: image_id")
        if image_id not in truth.images:
            near = other_kind(image_id, set(truth.images))
            raise ValueError(f"{where} has the image_id {image_id!r}, which the ground truth has not{near}")
        if not is_finite(result["score"]):
            raise ValueError(f"{where} has the score {result['score']}, expected a finite number")
        if "bbox" in result and not is_box(result["bbox"]):
            raise ValueError(f"{where} has the bbox {result['bbox']}, expected finite x, y, width, height")
        known = as_id(result["category_id"], f"{where}: category_id") in truth.categories or known
    if len(results) and not known:
        raise ValueError(
            f"results: none has a category_id of the ground truth, which has {list(truth.categories)[:10]}"
            f" (of {len(truth.categories)}); these look like class indices: map them to category ids"
        )


def _evaluate_one(truth: Truth, results: Sequence[Result], iou_type: IouType) -> Evaluation:
    ground_truth = COCO(for_evaluator(truth, iou_type))
    images, categories = truth.image_numbers(), truth.category_numbers()
    plain = [_result_for(r, i, iou_type, truth, images, categories) for i, r in enumerate(results)]
    found = ground_truth.loadRes([result for result in plain if result is not None])
    run = COCOeval_faster(ground_truth, found, iouType=iou_type, print_function=_say_nothing, extra_calc=False)
    run.run()
    metrics = {name: float(value) for name, value in zip(METRICS, run.stats, strict=True)}
    precision: NDArray[np.float64] = run.eval["precision"][:, :, :, 0, -1]
    recall: NDArray[np.float64] = run.eval["recall"][:, :, 0, -1]
    objects = Counter(entry["category_id"] for entry in truth.annotations if not entry.get("iscrowd", 0))
    per_class: dict[str, dict[str, float]] = {}
    for index, (category_id, name) in enumerate(truth.categories.items()):
        per_class[f"{name} ({category_id})" if name in per_class else name] = {
            "AP": _mean(precision[:, :, index]),
            "AP50": _mean(precision[0, :, index]),
            "AR100": _mean(recall[:, index]),
            "objects": float(objects[category_id]),
        }
    return Evaluation(metrics, per_class, precision)


def _say_nothing(*_: object) -> None:
    """Takes what the evaluator would print."""


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _result_for(
    result: Result, index: int, iou_type: IouType, truth: Truth, images: dict[Id, int], categories: dict[Id, int]
) -> dict[str, Any] | None:
    """A copy in plain numbers with what this kind of overlap looks at, and nothing else; None for an unknown class.

    A result with both box and mask would be given its box's area, and so its place in small, medium or large.
    """
    where = f"results: entry {index}"
    image_id, category_id = as_id(result["image_id"], where), as_id(result["category_id"], where)
    if iou_type == "segm" and "segmentation" not in result:
        raise ValueError(f'{where} has no "segmentation"; for boxes alone use iou_types=("bbox",)')
    if "bbox" not in result and "segmentation" not in result:
        raise ValueError(f'{where} has neither "bbox" nor "segmentation"')
    if category_id not in categories:
        return None
    plain = {
        "image_id": images[image_id],
        "category_id": categories[category_id],
        "score": float(result["score"]),
    }
    if iou_type == "bbox" and "bbox" in result:
        return {**plain, "bbox": [float(value) for value in result["bbox"]]}
    rle = to_rle(result["segmentation"], truth.images[image_id], where)
    if iou_type == "segm":
        return {**plain, "segmentation": rle}
    return {**plain, "bbox": [float(value) for value in coco_mask.toBbox(rle)]}


KINDS = {"bbox": "boxes", "segm": "masks"}
"""What people call the kinds of overlap."""


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """A table to print: a line for boxes and one for masks, in percent.

    Args:
        metrics: As :func:`evaluate_coco` gives them.

    Returns:
        A table for ``rich.print``; "–" where there was nothing to measure.

    Example:
        >>> import rich
        >>> from torchdcn.evaluation import metrics_table
        >>> from torchdcn.evaluation.coco import METRICS
        >>> rich.print(metrics_table({"bbox": dict.fromkeys(METRICS, 0.5)}))  # doctest: +SKIP
    """
    from rich.table import Table

    shown = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    table = Table(title="COCO figures, in percent")
    table.add_column("")
    for name in shown:
        table.add_column(name, justify="right")
    for kind, figures in metrics.items():
        table.add_row(KINDS.get(kind, kind), *(_percent(figures[name]) for name in shown))
    return table


def class_table(per_class: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """A table to print: a line for each class, in percent; its objects are counted without crowds.

    Args:
        per_class: ``{"bbox": evaluation.per_class, ...}`` of :func:`evaluate`'s answers.

    Returns:
        A table for ``rich.print``; "–" for classes without objects.

    Example:
        >>> import rich
        >>> from torchdcn.evaluation import class_table
        >>> figures = {"AP": 0.4, "AP50": 0.6, "AR100": 0.5, "objects": 12.0}
        >>> rich.print(class_table({"bbox": {"cat": figures}}))  # doctest: +SKIP
    """
    from rich.table import Table

    table = Table(title="By class, in percent")
    table.add_column("class", overflow="fold")
    table.add_column("objects", justify="right")
    shown = ("AP", "AP50", "AR100")
    for kind in per_class:
        for name in shown:
            table.add_column(f"{KINDS.get(kind, kind)}\n{name}", justify="right")
    first = next(iter(per_class.values()), {})
    for class_name in first:
        figures = [classes[class_name][name] for classes in per_class.values() for name in shown]
        table.add_row(class_name, f"{first[class_name]['objects']:.0f}", *map(_percent, figures))
    return table


def _percent(value: float) -> str:
    return "–" if value < 0 else f"{100 * value:.1f}"
