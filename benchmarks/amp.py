"""What mixed precision changes: a model's AP and time in float32 and in bf16, and how far their detections differ."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import box_iou

from torchdcn import Detections, Detector
from torchdcn.data import open_dataset
from torchdcn.evaluation import evaluate_detector
from torchdcn.models import create_model

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("weights")
    parser.add_argument("--split", default="val")
    parser.add_argument("--amp", default="bf16")
    options = parser.parse_args()
    dataset = open_dataset(options.data, options.split, masks=False)
    model = create_model(options.model, weights=options.weights)
    found: dict[str, list[Detections]] = {}
    for amp in ("none", options.amp):
        detector = Detector(model, amp=amp)
        detector(dataset.image_path(0))  # warms up
        began = time.process_time()
        found[amp] = [detector(dataset.image_path(index)) for index in range(len(dataset))]
        seconds = (time.process_time() - began) / len(dataset)
        answers = iter(found[amp])
        metrics, _ = evaluate_detector(lambda _, answers=answers: next(answers), dataset)
        figures = {kind: {name: round(values[name], 4) for name in ("AP", "AP50")} for kind, values in metrics.items()}
        print(f"{amp}: {figures}, {seconds * 1e3:.0f} ms of processor time a picture")
    for threshold in (0.05, 0.5):
        pairs = [(a.above(threshold), b.above(threshold)) for a, b in zip(*found.values(), strict=True)]
        print(f"scores above {threshold}: {differences(pairs)}")


def differences(pairs: Sequence[tuple[Detections, Detections]]) -> str:
    """Of detections of one class that overlap by an IoU of 0.9 or more, best first."""
    total, scores, corners = 0, [0.0], [0.0]
    for a, b in pairs:
        total += max(len(a), len(b))
        overlaps = box_iou(torch.from_numpy(a.boxes), torch.from_numpy(b.boxes)).numpy().copy()
        overlaps[a.labels[:, None] != b.labels] = 0
        while overlaps.size and overlaps.max() >= 0.9:
            i, j = np.unravel_index(overlaps.argmax(), overlaps.shape)
            overlaps[i], overlaps[:, j] = 0, 0
            scores.append(abs(float(a.scores[i] - b.scores[j])))
            corners.append(float(np.abs(a.boxes[i] - b.boxes[j]).max()))
    half, most = np.percentile(scores[1:] or [0], [50, 99])
    return (
        f"{len(scores) - 1} of {total} matched; scores differ by {half:.4f} (median), {most:.4f} (99 of 100);"
        f" boxes by {np.median(corners[1:] or [0]):.2f} px, {np.percentile(corners[1:] or [0], 99):.2f} px"
    )


if __name__ == "__main__":
    main()
