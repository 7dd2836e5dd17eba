from __future__ import annotations

import numpy as np
import pytest

from torchdcn.analysis import DetectedObjects
from torchdcn.analysis.objects import decode_mask, encode_mask
from torchdcn.detections import Detections

BOXES = np.array([[60, 60, 90, 90], [10, 10, 50, 32], [10, 10, 50, 49], [10, 10, 50, 50], [5, 55, 20, 70]], np.float32)
SCORES = np.array([0.99, 0.55, 0.5, 0.4, 0.2], np.float32)
LABELS = np.array([0, 0, 1, 0, 1])


def objects(*, masks: bool) -> DetectedObjects:
    shapes = np.zeros((5, 100, 100), bool)
    shapes[1, 22:30, 20:30] = True
    shapes[2, 20:30, 20:30] = True
    shapes[4, 60:65, 10:15] = True
    found = Detections(BOXES, SCORES, LABELS, shapes if masks else None, ("cat", "dog"), (100, 100))
    return DetectedObjects.from_detections(found)


def index_at(found: DetectedObjects, *place: float) -> int | None:
    detected = found.object_at(place)
    return None if detected is None else detected.index


def test_the_object_at_a_pixel_is_the_surest_whose_mask_holds_it() -> None:
    found = objects(masks=True)
    assert index_at(found, 25, 25) == 1
    assert index_at(found, 25, 20.6) == 2  # row 21
    assert index_at(found, 70, 70) is None  # in a box, but in no mask
    assert str(found.object_at((25, 21))) == "dog 0.50"


def test_without_masks_the_box_that_holds_the_pixels_centre_counts() -> None:
    found = objects(masks=False)
    assert index_at(found, 25, 31) == 1
    assert index_at(found, 25, 32) == 2  # this pixel's centre is 32.5 from the corner
    assert index_at(found, 10, 10) == 1
    assert index_at(found, 9, 10) is None
    assert index_at(found, 25, 49) == 3


def test_unsure_objects_are_none() -> None:
    assert index_at(objects(masks=True), 12, 62) is None
    assert index_at(objects(masks=True), 5, 54, 20, 71) is None


def test_the_object_in_a_box_has_the_largest_product_of_score_and_overlap() -> None:
    found = objects(masks=True)
    assert index_at(found, 9, 9, 51, 51) == 2  # 0.5 * 0.88; the surer one fills half of the box, the other is less sure
    assert index_at(found, 10, 10, 50, 33) == 1
    assert index_at(found, 50, 0, 90, 40) is None


def test_a_detections_own_box_stands_for_it_whatever_its_score() -> None:
    found = objects(masks=True)
    for index, box in enumerate(BOXES):
        assert index_at(found, *box.tolist()) == index
        assert index_at(found, *(box + 0.004).tolist()) == index  # as a file with two decimals has it


def test_every_pixel_of_the_map_has_the_object_of_that_pixel() -> None:
    found = objects(masks=True)
    assert (found.by_pixel.shape, found.by_pixel.dtype) == ((100, 100), np.int16)
    for x, y in ((25, 25), (25, 20), (70, 70), (0, 0), (99, 99)):
        assert found.by_pixel[y, x] == (-1 if (index := index_at(found, x, y)) is None else index)
    assert index_at(found, -0.5, 99.5) is None  # a pixel's outer edge belongs to the picture


def test_an_object_gives_its_mask() -> None:
    detected = objects(masks=True).object_at((25, 21))
    assert detected is not None
    mask = detected.mask()
    assert mask is not None
    assert mask.sum() == 100
    without = objects(masks=False).object_at((25, 21))
    assert without is not None
    assert without.mask() is None


def test_a_picture_without_objects_has_none() -> None:
    empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), None, ("cat",), (8, 9))
    found = DetectedObjects.from_detections(empty)
    assert found.object_at((1, 1)) is None
    assert found.object_at((1, 1, 5, 5)) is None
    assert (found.by_pixel == -1).all()


@pytest.mark.parametrize("seed", range(3))
def test_masks_survive_encoding(seed: int) -> None:
    mask = np.random.default_rng(seed).random((11, 7)) < 0.5
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
