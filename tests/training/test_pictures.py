import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchdcn.training import read_checkpoint, train


class Evaluate:
    def __init__(self, fails=False):
        self.fails = fails

    def __call__(self, model):  # noqa: ARG002  # what train calls
        return {"bbox": {"AP": 0.5}}

    def pictures(self, model):  # noqa: ARG002
        if self.fails:
            raise ValueError("no ink")
        return {"detections": np.zeros((4, 6, 3), np.uint8)}


def test_each_evaluation_leaves_pictures(config):
    config = replace(config, epochs=2, eval_every=1)
    train(config, Evaluate(), console=Console(quiet=True))
    events = EventAccumulator(config.out).Reload()
    assert [image.step for image in events.Images("val/detections")] == [3, 6]


def test_pictures_that_fail_do_not_end_a_run(config):
    console = Console(file=io.StringIO(), width=200)
    metrics = train(config, Evaluate(fails=True), console=console)
    assert metrics == {"bbox": {"AP": 0.5}}
    assert "no pictures for TensorBoard: no ink" in console.file.getvalue()
    assert read_checkpoint(Path(config.out) / "checkpoint.pt")["step"] == 3
