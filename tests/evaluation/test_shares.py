"""An evaluation that several processes share."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

from torchdcn.data import make_synthetic, open_dataset
from torchdcn.detections import Detections
from torchdcn.evaluation import evaluate_detector


class Rank:
    """One of two processes, asked one after the other: the second first."""

    def __init__(self, rank, told):
        self.rank, self.first, self.told = rank, rank == 0, told

    def shard(self, items):
        return list(items[self.rank :: 2])

    def raise_together(self):
        return nullcontext()

    def gather(self, value):
        if self.first:
            return [value, *self.told]
        self.told.append(value)
        return []

    def broadcast_from_first(self, value):
        return value


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(make_synthetic(tmp_path / "scenes", train=1, val=5, size=64), "val", masks=False)


@pytest.fixture
def seen():
    return []


@pytest.fixture
def detector(dataset, seen):
    def detect(image):
        seen.append(image.sum())
        # The same score everywhere: which detection comes first then decides the figures.
        boxes = np.array([[4, 4, 40, 40], [20, 20, 60, 60]], np.float32) + image[0, 0, 0] % 7
        return Detections(boxes, np.full(2, 0.5, np.float32), np.array([0, 1]), None, dataset.class_names, (64, 64))

    return detect


def test_shared_images_give_the_figures_and_the_order_of_one_process(dataset, detector, seen):
    told = []
    alone, results = evaluate_detector(detector, dataset)
    assert len(seen) == 5
    assert evaluate_detector(detector, dataset, processes=Rank(1, told)) == ({}, [])
    assert len(seen) == 7
    shared, gathered = evaluate_detector(detector, dataset, processes=Rank(0, told))
    assert len(seen) == 10
    assert (shared, gathered) == (alone, results)


def test_an_image_that_cannot_be_read_ends_the_evaluation_unless_it_is_passed_over(dataset, detector):
    dataset.image_path(3).write_bytes(b"no picture")
    with pytest.raises(OSError, match="can't be read as an image"):
        evaluate_detector(detector, dataset)


def test_images_passed_over_leave_the_figures_with_their_annotations_whoever_met_them(dataset, detector):
    content = json.loads(dataset.annotation_file.read_text())
    for index in (1, 4):  # the second process's, and the first one's
        dataset.image_path(index).write_bytes(b"no picture")
    skipped, told = {}, []
    alone, results = evaluate_detector(detector, dataset, skip_bad=skipped.__setitem__)
    assert list(skipped) == [1, 4]
    assert all(str(dataset.image_path(index)) in why for index, why in skipped.items())
    assert len(results) == 6
    elsewhere = {}
    evaluate_detector(detector, dataset, processes=Rank(1, told), skip_bad=elsewhere.__setitem__)
    again = {}
    shared = evaluate_detector(detector, dataset, processes=Rank(0, told), skip_bad=again.__setitem__)
    assert (shared, again, elsewhere) == ((alone, results), skipped, {})

    bad = {dataset.image_ids[index] for index in skipped}
    content["images"] = [image for image in content["images"] if image["id"] not in bad]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in bad]
    dataset.annotation_file.write_text(json.dumps(content))
    assert evaluate_detector(detector, open_dataset(dataset.root, "val", masks=False)) == (alone, results)


def test_an_error_of_the_detector_is_not_passed_over(dataset):
    def detect(image):
        raise ValueError(f"{image.shape} is too small")

    with pytest.raises(ValueError, match="too small"):
        evaluate_detector(detect, dataset, skip_bad={}.__setitem__)


def test_data_of_which_no_image_can_be_read_is_an_error(dataset, detector):
    for index in range(5):
        dataset.image_path(index).unlink()
    with pytest.raises(ValueError, match=r"val\.json: none of the 5 images can be read, the first one: .*no such"):
        evaluate_detector(detector, dataset, skip_bad={}.__setitem__)
