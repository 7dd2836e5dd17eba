from __future__ import annotations

import builtins
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from torchdcn.detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES, Detections


def found(count: int = 3, masks: Any = True, **changes: Any) -> Detections:
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, 20, (count, 2))
    random_masks = rng.random((count, 40, 50)) > 0.5
    arguments = {
        "boxes": np.concatenate([corners, corners + rng.uniform(1, 20, (count, 2))], axis=1),
        "scores": np.linspace(0.9, 0.1, count),
        "labels": np.arange(count) % 2,
        "masks": {True: random_masks, False: None}[masks] if isinstance(masks, bool) else masks,
        "class_names": ("cat", "dog"),
        "image_size": (40, 50),
    }
    return Detections(**{**arguments, **changes})


def test_arrays_and_tensors_become_arrays_of_fixed_dtypes() -> None:
    arrays = found()
    tensors = found(
        boxes=torch.from_numpy(arrays.boxes).double(),
        scores=torch.from_numpy(arrays.scores),
        labels=torch.from_numpy(arrays.labels).int(),
        masks=torch.from_numpy(arrays.masks),
    )
    for detections in (arrays, tensors):
        dtypes = [getattr(detections, name).dtype for name in ("boxes", "scores", "labels", "masks")]
        assert dtypes == [np.float32, np.float32, np.int64, np.bool_]
    np.testing.assert_array_equal(arrays.boxes, tensors.boxes)
    assert len(arrays) == 3


def test_detections_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        found().scores = np.zeros(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boxes", np.zeros((2, 4))),
        ("boxes", np.zeros((3, 5))),
        ("scores", np.zeros((3, 1))),
        ("labels", np.zeros(4)),
        ("labels", np.array([0, 1, 2])),
        ("labels", np.array([0, 1, -1])),
        ("masks", np.zeros((3, 50, 40), bool)),
        ("masks", np.zeros((3, 1, 40, 50), bool)),
        ("category_ids", (1,)),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        found(**{name: value})


def test_to_coco_writes_boxes_as_x_y_width_height_and_masks_as_rle_that_json_takes() -> None:
    detections = found(category_ids=(7, 9))
    results = json.loads(json.dumps(detections.to_coco(image_id=5)))
    assert [r["category_id"] for r in results] == [7, 9, 7]
    assert {r["image_id"] for r in results} == {5}
    for result, box, score, mask in zip(results, detections.boxes, detections.scores, detections.masks, strict=True):
        x, y, w, h = result["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], box, atol=1e-5)
        assert result["score"] == pytest.approx(score)
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), mask)


def test_to_coco_takes_the_label_where_no_category_ids_are_known_and_given_ids_win() -> None:
    assert [r["category_id"] for r in found(masks=False).to_coco(1)] == [0, 1, 0]
    assert "segmentation" not in found(masks=False).to_coco(1)[0]
    assert [r["category_id"] for r in found(category_ids=(7, 9)).to_coco(1, [20, 30])] == [20, 30, 20]
    with pytest.raises(ValueError, match="category_ids"):
        found().to_coco(1, [20])


def test_above_keeps_what_scores_more() -> None:
    detections = found(5)
    better = detections.above(float(detections.scores[2]))
    assert len(better) == 2
    np.testing.assert_array_equal(better.masks, detections.masks[:2])
    assert found(0).above(0.5).to_coco(1) == []


@pytest.mark.parametrize("count", [0, 3])
def test_to_supervision_carries_everything(count: int) -> None:
    pytest.importorskip("supervision", reason="the extra supervision is not installed")
    detections = found(count)
    other = detections.to_supervision()
    np.testing.assert_array_equal(other.xyxy, detections.boxes)
    np.testing.assert_array_equal(other.confidence, detections.scores)
    np.testing.assert_array_equal(other.class_id, detections.labels)
    np.testing.assert_array_equal(other.mask, detections.masks)
    assert list(other.data["class_name"]) == ["cat", "dog", "cat"][:count]
    assert found(count, masks=False).to_supervision().mask is None


def test_to_supervision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "supervision":
            raise ImportError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install supervision"):
        found().to_supervision()


def test_draw_gives_a_picture_of_the_same_size_and_leaves_the_input_as_it_was() -> None:
    image = np.full((40, 50, 3), 128, np.uint8)
    drawn = found().draw(image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != 128).any()
    assert (image == 128).all()
    assert found().draw(image, scale=3).shape == (120, 150, 3)
    np.testing.assert_array_equal(found().draw(image, score_threshold=0.95), image)


def test_draw_refuses_another_picture() -> None:
    with pytest.raises(ValueError, match=r"\(40, 50\)"):
        found().draw(np.zeros((50, 40, 3), np.uint8))


def test_coco_has_80_names_and_ids() -> None:
    assert len(set(COCO_CLASS_NAMES)) == len(set(COCO_CATEGORY_IDS)) == 80
    ids = dict(zip(COCO_CLASS_NAMES, COCO_CATEGORY_IDS, strict=True))
    assert (ids["person"], ids["stop sign"], ids["backpack"], ids["toothbrush"]) == (1, 13, 27, 90)
