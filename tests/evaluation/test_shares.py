"""An evaluation that several processes share."""

from contextlib import nullcontext

import numpy as np

from torchdcn.data import make_synthetic, open_dataset
from torchdcn.detections import Detections
from torchdcn.evaluation import evaluate_detector


class Rank:
    """One of two processes, asked one after the other: the second first."""

    def __init__(self, rank, told):
        self.rank, self.first, self.told = rank, rank == 0, told

    def share(self, items):
        return list(items[self.rank :: 2])

    def together(self):
        return nullcontext()

    def gather(self, value):
        if self.first:
            return [value, *self.told]
        self.told.append(value)
        return []

    def from_first(self, value):
        return value


def test_shared_images_give_the_figures_and_the_order_of_one_process(tmp_path):
    dataset = open_dataset(make_synthetic(tmp_path / "scenes", train=1, val=5, size=64), "val", masks=False)
    seen, told = [], []

    def detector(image):
        seen.append(image.sum())
        # The same score everywhere: which detection comes first then decides the figures.
        boxes = np.array([[4, 4, 40, 40], [20, 20, 60, 60]], np.float32) + image[0, 0, 0] % 7
        return Detections(boxes, np.full(2, 0.5, np.float32), np.array([0, 1]), None, dataset.class_names, (64, 64))

    alone, results = evaluate_detector(detector, dataset)
    assert len(seen) == 5
    assert evaluate_detector(detector, dataset, processes=Rank(1, told)) == ({}, [])
    assert len(seen) == 7
    shared, gathered = evaluate_detector(detector, dataset, processes=Rank(0, told))
    assert len(seen) == 10
    assert (shared, gathered) == (alone, results)
