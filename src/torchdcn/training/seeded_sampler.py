"""Sampling of anchors and regions inside the detector, with a seed for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


class SeededSampler:
    """Runs torchvision's sampler of positives and negatives for one image at a time, under that image's seed.

    What is drawn for an image then depends only on its place in the epoch: not on the other images of the batch, and so
    not on the number of processes that share the batch.

    Args:
        sampler: Called with the labels of one image.
        stage: Added to the seeds, so that the samplers of a detector draw different numbers.
    """

    def __init__(self, sampler: Sampler, stage: int) -> None:
        self.sampler, self.stage = sampler, stage
        self.seeds: Sequence[int] = ()

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and of the negatives, one each for the labels of every image."""
        positives, negatives = [], []
        for label, seed in zip(labels, self.seeds, strict=True):
            devices = [label.device] if label.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(seed + self.stage)
                positive, negative = self.sampler([label])
            positives += positive
            negatives += negative
        return positives, negatives


def seeded_samplers(model: nn.Module) -> list[SeededSampler]:
    """Replaces the samplers of a detector by :class:`SeededSampler`, whose ``seeds`` must be set before each batch."""
    parts: list[Any] = [model.rpn, model.roi_heads]
    for stage, part in enumerate(parts):
        part.fg_bg_sampler = SeededSampler(part.fg_bg_sampler, stage)
    return [part.fg_bg_sampler for part in parts]
