"""Ground truth and results made to be hard, and pycocotools as the judge."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from torchdcn.evaluation import evaluate_coco
from torchdcn.evaluation.coco import METRICS

SIZE = 200


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def ellipse(box: list[float]) -> np.ndarray:
    x, y, w, h = box
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return ((columns + 0.5 - x - w / 2) / (w / 2)) ** 2 + ((rows + 0.5 - y - h / 2) / (h / 2)) ** 2 <= 1


def make_case(seed: int, images: int = 6, found_per_object: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of all sizes, crowds, an image and a class without objects, ties, false positives."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": f"class {i}"} for i in (2, 5, 7, 90)]  # 90 has no objects
    truth: dict[str, Any] = {
        "images": [{"id": 10 * i + 3, "height": SIZE, "width": SIZE, "file_name": f"{i}.png"} for i in range(images)],
        "categories": categories,
        "annotations": [],
    }
    results = []
    for image in truth["images"][:-1]:  # the last has none
        for _ in range(rng.integers(1, 9)):
            side = float(rng.choice([12, 40, 120]))
            box = [*rng.uniform(0, SIZE - side, 2).tolist(), side, side * rng.uniform(0.5, 1)]
            category = int(rng.choice([2, 5, 7], p=[0.6, 0.3, 0.1]))
            mask = ellipse(box)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rle(mask),
                }
            )
            for _ in range(found_per_object):
                shifted = (np.array(box) + rng.normal(0, side / 12, 4)).clip(1).tolist()
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() < 0.9 else int(rng.choice([2, 5, 7, 90])),
                        "bbox": shifted,
                        "score": float(np.round(rng.random(), 1)),  # ties
                        "segmentation": rle(ellipse(shifted)),
                    }
                )
    order = rng.permutation(len(results))
    return truth, [results[i] for i in order]


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str) -> tuple[list[float], COCOeval]:
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = copy.deepcopy(truth)
        ground_truth.createIndex()
        results = copy.deepcopy(results)
        if iou_type == "segm":  # else areas are those of the boxes
            for result in results:
                result.pop("bbox")
        run = COCOeval(ground_truth, ground_truth.loadRes(results), iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return list(run.stats), run


def assert_same_figures(truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    figures = evaluate_coco(truth, results)
    for iou_type in ("bbox", "segm"):
        expected, _ = pycocotools(truth, results, iou_type)
        assert list(figures[iou_type]) == list(METRICS)
        np.testing.assert_allclose(list(figures[iou_type].values()), expected, atol=1e-6, rtol=0, err_msg=iou_type)


SIDES = (1, 2, 31, 32, 33, 48, 64, 95, 96, 97, 128)  # a square of 32 or 96 is at the border of small, medium, large
AREAS = (0.0, 1023.5, 32.0**2, 1024.5, 96.0**2, 9216.5, 1e5)
IOUS = (0.25, 0.5, 0.6, 0.75, 0.95)


def hard_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of whole pixels, so that overlaps and areas lie exactly at the borders between good and bad.

    Also: crowds, "ignore", areas that are not the masks', masks of all three formats, images and classes without
    objects or without results, up to 200 results an image, scores of few values, ids and lists in any order.
    """
    rng = np.random.default_rng(seed)
    categories = rng.permutation([1, 3, 7, 50, 90])[: rng.integers(1, 6)].tolist()
    found = categories[: max(1, len(categories) - seed % 2)]
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": 140, "width": 170} for i in rng.choice(10**6, 4, replace=False).tolist()],
        "categories": [{"id": i, "name": str(i)} for i in categories],
        "annotations": [],
    }
    results, levels = [], int(rng.choice([1, 2, 5, 1000]))
    for image in truth["images"]:
        objects = [_object(rng, image, categories) for _ in range(rng.choice([0, 1, 5, 12]))]
        truth["annotations"] += objects
        for _ in range(rng.choice([0, 5, 30, 200])):
            box = (
                _near(rng, objects[rng.integers(len(objects))]["bbox"]) if objects and rng.random() < 0.7 else _box(rng)
            )
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": int(rng.choice(found)),
                    "bbox": box,
                    "score": float(rng.integers(0, levels + 1) / levels),
                    "segmentation": rle(_filled(box)),
                }
            )
    order = rng.permutation(len(truth["annotations"]))
    truth["annotations"] = [{**truth["annotations"][k], "id": i + 1} for i, k in enumerate(order)]
    return truth, [results[i] for i in rng.permutation(len(results))]


def _box(rng: np.random.Generator) -> list[float]:
    w, h = rng.choice(SIDES, 2) if rng.random() < 0.8 else rng.integers(1, 130, 2)
    return [float(rng.integers(170 - w)), float(rng.integers(140 - h)), float(w), float(h)]


def _near(rng: np.random.Generator, box: list[float]) -> list[float]:
    """The same box, or a part of it with an IoU that COCO asks for, or one moved by some pixels."""
    x, y, w, h = box
    kind = rng.integers(3)
    if kind == 0:
        return [x, y, w, max(1.0, float(int(h * rng.choice(IOUS))))]
    if kind == 1:
        dx, dy, dw, dh = rng.integers(-4, 5, 4).tolist()
        x, y = float(np.clip(x + dx, 0, 169)), float(np.clip(y + dy, 0, 139))
        return [x, y, float(np.clip(w + dw, 1, 170 - x)), float(np.clip(h + dh, 1, 140 - y))]
    return [x, y, w, h]


def _object(rng: np.random.Generator, image: dict[str, Any], categories: list[int]) -> dict[str, Any]:
    box = _box(rng)
    x, y, w, h = box
    mask = _filled(box)
    crowd = int(rng.random() < 0.25)
    runs = np.diff(np.r_[0, np.flatnonzero(np.diff(mask.T.ravel())) + 1, mask.size]).tolist()
    formats: list[Any] = [
        rle(mask),
        {"size": list(mask.shape), "counts": [0, *runs] if mask[0, 0] else runs},
        [[x, y, x + w, y, x + w, y + h, x, y + h]],
    ]
    return {
        "image_id": image["id"],
        "category_id": int(rng.choice(categories)),
        "bbox": box,
        "area": w * h if rng.random() < 0.7 else float(rng.choice(AREAS)),
        "iscrowd": crowd,
        "segmentation": formats[rng.integers(2 if crowd else 3)],
        **({"ignore": 1} if rng.random() < 0.1 else {}),
    }


def _filled(box: list[float]) -> np.ndarray:
    x, y, w, h = map(int, box)
    mask = np.zeros((140, 170), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask
