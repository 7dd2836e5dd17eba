"""Ground truth as people's files have it: ids of any kind, other encodings, and faults that are named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from torchdcn.evaluation import evaluate, evaluate_coco

if TYPE_CHECKING:
    from pathlib import Path


def two_images(ids: Any, **more: Any) -> dict[str, Any]:
    """Two images with an object each, at another place on each."""
    boxes = ([1, 2, 20, 20], [25, 25, 20, 20])
    return {
        "images": [{"id": i, "width": 50, "height": 50} for i in ids],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": 1, "bbox": boxes[n], "area": 400, "iscrowd": 0, **more}
            for n, i in enumerate(ids)
        ],
    }


def found_on(ids: Any) -> list[dict[str, Any]]:
    boxes = ([1, 2, 20, 20], [25, 25, 20, 20])
    return [{"image_id": i, "category_id": 1, "bbox": box, "score": 0.9} for i, box in zip(ids, boxes, strict=True)]


@pytest.mark.parametrize(
    "ids", [(1, 2), ("a_1", "b_2"), ("007", "7"), (7, "7"), (-1, 0), (2**70, 2**71), (1.0, 2.0)], ids=str
)
def test_ids_of_images_are_any_integers_or_text_and_stay_apart(ids: Any) -> None:
    assert evaluate_coco(two_images(ids), found_on(ids), ["bbox"])["bbox"]["AP"] == 1
    assert evaluate_coco(two_images(ids), found_on(ids[::-1]), ["bbox"])["bbox"]["AP"] == 0


def test_ids_may_be_numbers_of_numpy_and_torch() -> None:
    results = found_on((1, 2))
    results[0]["image_id"], results[1]["image_id"] = np.int64(1), torch.tensor(2)
    results[0]["category_id"] = np.uint8(1)
    assert evaluate_coco(two_images((1, 2)), results, ["bbox"])["bbox"]["AP"] == 1


def test_categories_may_have_text_for_ids() -> None:
    truth, results = two_images((1, 2)), found_on((1, 2))
    truth["categories"] = [{"id": "x", "name": "a"}, {"id": "b", "name": "b"}]
    for entry in (*truth["annotations"], *results):
        entry["category_id"] = "x"
    per_class = evaluate(truth, results, ["bbox"])["bbox"].per_class
    assert {name: figures["AP"] for name, figures in per_class.items()} == {"b": -1, "a": 1}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", {"id": None}, r"images\[0\]: id: expected an integer or text, got None"),
        ("images", {"id": [1]}, r"images\[0\]: id: expected an integer or text, got \[1\]"),
        ("images", {"id": 2}, r"images\[1\]: the id 2 is there twice"),
        ("images", {"width": "50"}, r"images\[0\] \(id 1\): expected width and height as integers above 0, got '50'"),
        ("images", {"height": None}, r"images\[0\] \(id 1\): expected width and height"),
        ("images", {"height": 0}, r"images\[0\] \(id 1\): expected width and height"),
        ("categories", {"id": None}, r"categories\[0\]: id: expected an integer or text, got None"),
        ("categories", {"id": 1.5}, r"categories\[0\]: id: expected an integer or text, got 1\.5"),
        ("annotations", {"image_id": None}, r"annotations\[0\] \(id 1\): image_id: expected an integer or text, got"),
        ("annotations", {"image_id": True}, r"image_id: expected an integer or text, got True"),
        ("annotations", {"image_id": "1"}, r"the image_id '1', which no image has \(there is 1, which is a number"),
        ("annotations", {"category_id": None}, r"\(id 1\): category_id: expected an integer or text, got None"),
        ("annotations", {"iscrowd": None}, r"\(id 1\): expected iscrowd to be 0 or 1, got None"),
        ("annotations", {"iscrowd": "0"}, r"\(id 1\): expected iscrowd to be 0 or 1, got '0'"),
        ("annotations", {"area": "400"}, r"\(id 1\): expected area as a number, got '400'"),
        ("annotations", {"area": None}, r"\(id 1\): expected area as a number, got None"),
        ("annotations", {"bbox": None}, r"\(id 1\) has the bbox None, expected finite"),
        ("annotations", {"bbox": ["1", 2, 3, 4]}, r"\(id 1\) has the bbox"),
    ],
)
def test_null_and_wrong_types_are_named_with_their_entry(key: str, change: dict[str, Any], message: str) -> None:
    truth = two_images((1, 2))
    truth[key][0] |= change
    with pytest.raises(ValueError, match=rf"^ground_truth_json: .*{message}") as caught:
        evaluate_coco(truth, found_on((1, 2)), ["bbox"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": None}, "image_id: expected an integer or text, got None"),
        ({"image_id": "1"}, "the image_id '1', which the ground truth has not .there is 1, which is a number"),
        ({"category_id": [1]}, r"category_id: expected an integer or text, got \[1\]"),
        ({"category_id": 1.5}, "category_id: expected an integer or text, got 1.5"),
    ],
)
def test_wrong_ids_of_results_are_named_with_their_entry(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^results: entry 0.*{message}"):
        evaluate_coco(two_images((1, 2)), [found_on((1, 2))[0] | change], ["bbox"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_may_be_in_any_of_unicodes_encodings(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "instances_val.json"
    file.write_bytes(json.dumps(two_images((1, 2))).encode(encoding))
    assert evaluate_coco(file, found_on((1, 2)), ["bbox"])["bbox"]["AP"] == 1


@pytest.mark.parametrize("degenerate", [[[]], [[1, 2, 20, 20]], [[1, 1, 5, 5, 9, 9]]])
def test_objects_whose_mask_has_no_area_are_left_out_of_the_masks_figures_and_told(degenerate: Any) -> None:
    square = [[25, 25, 45, 25, 45, 45, 25, 45]]
    truth, results = two_images((1, 2), segmentation=square), found_on((1, 2))
    truth["annotations"][0]["segmentation"] = degenerate
    results = [{**results[1], "segmentation": square}]
    with pytest.warns(UserWarning, match=r"1 object whose mask has no area .* the first: annotation 1"):
        figures = evaluate_coco(truth, results)
    assert figures["segm"]["AP"] == 1
    assert figures["bbox"]["AP"] < 0.6  # of the boxes, one of two


def test_a_category_that_groups_others_is_no_class() -> None:
    truth = two_images((1, 2))
    truth["categories"] = [{"id": 0, "name": "a"}, {"id": 1, "name": "a", "supercategory": "a"}]
    assert list(evaluate(truth, found_on((1, 2)), ["bbox"])["bbox"].per_class) == ["a"]
