"""Repeat-factor sampling (arXiv 1908.03195, appendix B.2): images with rare classes are seen more often."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor


def repeat_factors(labels: Sequence[Iterable[int]], threshold: float) -> list[float] | None:
    """How often an epoch shows each image on average, 1 or more; they add up to a whole number.

    A class on a share ``f`` of the images asks for ``sqrt(threshold / f)``; an image gets the most that one of its
    classes asks for.

    Args:
        labels: The classes on each image, each as often as it likes.
        threshold: The share of the images below which a class counts as rare; 0: none does.

    Returns:
        A factor for each image, or None where ``threshold`` is 0.

    Example:
        >>> from torchdcn.training.repeats import repeat_factors
        >>> repeat_factors([[0], [0, 0], [0], [0, 1]], threshold=1.0)
        [1.0, 1.0, 1.0, 2.0]
    """
    if not threshold or not labels:
        return None
    sets = [set(classes) for classes in labels]
    images_with = Counter(label for classes in sets for label in classes)
    wanted = {label: math.sqrt(threshold * len(sets) / count) for label, count in images_with.items()}
    factors = [max([1.0, *(wanted[label] for label in classes)]) for classes in sets]
    total = math.fsum(factors)
    whole = math.ceil(total - 1e-6)  # so that all epochs are of one length
    return [max(1.0, factor * whole / total) for factor in factors]


def epoch_length(images: int, factors: Sequence[float] | None) -> int:
    """How many images an epoch shows."""
    return images if factors is None else round(math.fsum(factors))


def repeated(factors: Sequence[float], generator: torch.Generator) -> Tensor:  # [epoch_length]
    """An epoch's images in a random order: each as often as its factor says, rounded up or down by chance."""
    shuffled = torch.randperm(len(factors), generator=generator)
    ends = torch.tensor(factors, dtype=torch.float64)[shuffled].cumsum(0)
    ends[-1] = epoch_length(len(factors), factors)
    # One random shift for all: image i is there once for every whole number that its stretch of the sum crosses.
    crossed = (ends + torch.rand((), generator=generator, dtype=torch.float64)).floor().long()
    counts = crossed.diff(prepend=torch.zeros(1, dtype=torch.long))
    indices = shuffled.repeat_interleave(counts)
    return indices[torch.randperm(len(indices), generator=generator)]


def dataset_factors(dataset: Any, threshold: float) -> list[float] | None:
    """:func:`repeat_factors` of a :class:`torchdcn.data.CocoDetection`."""
    return repeat_factors([dataset.labels(i) for i in range(len(dataset))], threshold) if threshold else None
