"""The detector's own draws, of anchors and of regions, each image's under a seed of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


class SeededSampler:
    """torchvision's sampler of positives and negatives, with each image's draws under that image's seed.

    What is drawn for an image then depends on its place in the epoch alone: not on the images beside it, and so not on
    how many processes share the batch.

    Args:
        sampler: Called with the labels of one image at a time.
        stage: Told apart from the other samplers' by this number.
    """

    def __init__(self, sampler: Sampler, stage: int) -> None:
        self.sampler, self.stage = sampler, stage
        self.seeds: Sequence[int] = ()

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and of the negatives, one each for every image's labels."""
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
    """Gives a detector's proposal network and heads :class:`SeededSampler`, which want ``seeds`` before each batch."""
    parts: list[Any] = [model.rpn, model.roi_heads]
    for stage, part in enumerate(parts):
        part.fg_bg_sampler = SeededSampler(part.fg_bg_sampler, stage)
    return [part.fg_bg_sampler for part in parts]
