"""COCO's figures, AP and AR of boxes and masks, by faster-coco-eval: the numbers that pycocotools gives."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask

from ..data.rle import rle_fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

IouType = Literal["bbox", "segm"]
GroundTruth = str | os.PathLike[str] | Mapping[str, Any]
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
    for a miss.

    Args:
        ground_truth_json: Path of an ``instances_*.json``, or its content. Stays as it was.
        results: Dicts with ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or
            ``segmentation`` (RLE or polygons) or both. None found gives AP 0. They stay as they were.
        iou_types: "bbox", "segm" or both.

    Returns:
        ``{"bbox": {"AP": 0.41, ..., "ARl": ...}, "segm": {...}}``, fractions in 0..1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not COCO's format, or a result lacks something or is not of this data set.

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
    truth = read_ground_truth(ground_truth_json)
    _check_results(results, truth)
    return {iou_type: _evaluate_one(truth, results, iou_type) for iou_type in iou_types}


def read_ground_truth(source: GroundTruth) -> Mapping[str, Any]:
    """The content of an ``instances_*.json``, checked as far as every figure needs it."""
    if isinstance(source, Mapping):
        name, truth = "the mapping given", source
    else:
        name = str(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"ground_truth_json: {name} does not exist")
        try:
            truth = json.loads(Path(source).read_text(encoding="utf-8"))
        except ValueError as error:  # bad JSON, or not text
            raise ValueError(f"ground_truth_json: {name} is not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth, Mapping) or not isinstance(truth.get(key), list):
            raise ValueError(f'ground_truth_json: expected COCO\'s format with a list "{key}" in {name}')
    _check_ground_truth(truth, name)
    return truth


def _need(entry: Any, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if key not in entry] if isinstance(entry, Mapping) else keys
    if missing:
        raise ValueError(f'{where} has no "{missing[0]}"')


def _check_ground_truth(truth: Mapping[str, Any], name: str) -> None:
    for key, needed in (("images", ["id", "height", "width"]), ("categories", ["id"])):
        for index, entry in enumerate(truth[key]):
            _need(entry, needed, f"ground_truth_json: {name}: {key}[{index}]")
    for index, entry in enumerate(truth["annotations"]):
        where = f"ground_truth_json: {name}: annotations[{index}]"
        _need(entry, ["image_id", "category_id"], where)
        if "bbox" in entry and not _is_box(entry["bbox"]):
            raise ValueError(f"{where} has the bbox {entry['bbox']}, expected finite x, y, width, height")


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(math.isfinite(value) for value in box)
    except TypeError:  # None, or no numbers
        return False


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _check_results(results: Sequence[Result], truth: Mapping[str, Any]) -> None:
    image_ids = {int(image["id"]) for image in truth["images"]}
    category_ids = {int(category["id"]) for category in truth["categories"]}
    known = False
    for index, result in enumerate(results):
        where = f"results: entry {index}"
        _need(result, ["image_id", "category_id", "score"], where)
        if int(result["image_id"]) not in image_ids:
            raise ValueError(f"{where} has the image_id {result['image_id']}, which the ground truth has not")
        if not _is_finite(result["score"]):
            raise ValueError(f"{where} has the score {result['score']}, expected a finite number")
        if "bbox" in result and not _is_box(result["bbox"]):
            raise ValueError(f"{where} has the bbox {result['bbox']}, expected finite x, y, width, height")
        known = known or int(result["category_id"]) in category_ids
    if len(results) and not known:
        raise ValueError(
            f"results: none has a category_id of the ground truth, which has {sorted(category_ids)[:10]}"
            f" (of {len(category_ids)}); these look like class indices: map them to category ids"
        )


def _evaluate_one(truth: Mapping[str, Any], results: Sequence[Result], iou_type: IouType) -> Evaluation:
    ground_truth = COCO(ground_truth_for(truth, iou_type))
    images = ground_truth.imgs
    found = ground_truth.loadRes([_result_for(r, i, iou_type, images) for i, r in enumerate(results)])
    run = COCOeval_faster(ground_truth, found, iouType=iou_type, print_function=_say_nothing, extra_calc=False)
    run.run()
    metrics = {name: float(value) for name, value in zip(METRICS, run.stats, strict=True)}
    precision: NDArray[np.float64] = run.eval["precision"][:, :, :, 0, -1]
    recall: NDArray[np.float64] = run.eval["recall"][:, :, 0, -1]
    objects = _count_objects(truth)
    per_class = {}
    for index, category_id in enumerate(run.params.catIds):
        name = str(ground_truth.cats[category_id].get("name", category_id))
        per_class[f"{name} ({category_id})" if name in per_class else name] = {
            "AP": _mean(precision[:, :, index]),
            "AP50": _mean(precision[0, :, index]),
            "AR100": _mean(recall[:, index]),
            "objects": float(objects.get(category_id, 0)),
        }
    return Evaluation(metrics, per_class, precision)


def _say_nothing(*_: object) -> None:
    """Takes what the evaluator would print."""


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _count_objects(truth: Mapping[str, Any]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd", 0):
            counts[int(annotation["category_id"])] = counts.get(int(annotation["category_id"]), 0) + 1
    return counts


def ground_truth_for(truth: Mapping[str, Any], iou_type: IouType) -> dict[str, Any]:
    """A copy that the evaluator may write to, its annotations numbered from 1: 0 would mean "no match"."""
    images = images_by_id(truth)
    needed = "bbox" if iou_type == "bbox" else "segmentation"
    annotations = []
    for index, given in enumerate(truth["annotations"]):
        where = f"ground_truth_json: annotation {given.get('id', index)}"
        image = images.get(int(given["image_id"]))
        if image is None:
            raise ValueError(f"{where} has the image_id {given['image_id']}, which no image has")
        if needed not in given:
            raise ValueError(f'{where} has no "{needed}", which "{iou_type}" needs')
        annotation = {**given, "id": index + 1, "image_id": image["id"]}
        if iou_type == "segm":
            annotation["segmentation"] = _to_rle(given["segmentation"], image, where)
        if "area" not in given:
            annotation["area"] = _area(annotation, image, where)
        annotations.append(annotation)
    categories = [dict(category) for category in truth["categories"]]
    return {"images": list(images.values()), "categories": categories, "annotations": annotations}


def _result_for(result: Result, index: int, iou_type: IouType, images: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A copy in plain numbers with what this kind of overlap looks at, and nothing else.

    A result with both box and mask would be given its box's area, and so its place in small, medium or large.
    """
    where = f"results: entry {index}"
    image_id = int(result["image_id"])
    score, category_id = float(result["score"]), int(result["category_id"])
    plain = {"image_id": image_id, "category_id": category_id, "score": score}
    if iou_type == "segm" and "segmentation" not in result:
        raise ValueError(f'{where} has no "segmentation"; for boxes alone use iou_types=("bbox",)')
    if iou_type == "segm":
        return {**plain, "segmentation": _to_rle(result["segmentation"], images[image_id], where)}
    if "bbox" in result:
        return {**plain, "bbox": [float(value) for value in result["bbox"]]}
    if "segmentation" in result:
        rle = _to_rle(result["segmentation"], images[image_id], where)
        return {**plain, "bbox": [float(value) for value in coco_mask.toBbox(rle)]}
    raise ValueError(f'{where} has neither "bbox" nor "segmentation"')


def images_by_id(truth: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Copies of the images' entries by their ids."""
    return {int(image["id"]): {**image, "id": int(image["id"])} for image in truth["images"]}


def _to_rle(segmentation: Any, image: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Polygons or run lengths, plain or compressed, to compressed run lengths of the image's size."""
    height, width = int(image["height"]), int(image["width"])
    if isinstance(segmentation, Mapping):
        fault = rle_fault(segmentation, height, width)  # the decoder would go on for ever where one is damaged
        if fault:
            raise ValueError(f"{where}: segmentation: {fault}")
    try:
        rle: dict[str, Any] = coco_mask.segmToRle(segmentation, width, height)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where} has a segmentation that cannot be read: {error}") from error
    return rle


def _area(annotation: Mapping[str, Any], image: Mapping[str, Any], where: str) -> float:
    if "segmentation" in annotation:
        return float(coco_mask.area(_to_rle(annotation["segmentation"], image, where)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


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
