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

    A class on a share ``f`` of the images has the factor ``sqrt(threshold / f)``. An image has the largest factor of
    its classes.

    Args:
        labels: The classes on each image; repeats in a list make no difference.
        threshold: The share of the images below which a class is rare; 0: no class is.

    Returns:
        A factor for each image, or None where ``threshold`` is 0.

    Example:
        >>> from torchdcn.training.repeat_factor import repeat_factors
        >>> repeat_factors([[0], [0, 0], [0], [0, 1]], threshold=1.0)
        [1.0, 1.0, 1.0, 2.0]
    """
    if not threshold or not labels:
        return None
    sets = [set(classes) for classes in labels]
    images_with = Counter(label for classes in sets for label in classes)
    by_class = {label: math.sqrt(threshold * len(sets) / count) for label, count in images_with.items()}
    factors = [max([1.0, *(by_class[label] for label in classes)]) for classes in sets]
    total = math.fsum(factors)
    whole = math.ceil(total - 1e-6)  # a whole number, so that all epochs have the same length
    return [max(1.0, factor * whole / total) for factor in factors]


def epoch_length(images: int, factors: Sequence[float] | None) -> int:
    """How many images an epoch shows, repeats included."""
    return images if factors is None else round(math.fsum(factors))


def draw_repeats(factors: Sequence[float], generator: torch.Generator) -> Tensor:  # [epoch_length]
    """Draws an epoch's images in a random order: each as often as its factor, rounded up or down by chance."""
    shuffled = torch.randperm(len(factors), generator=generator)
    ends = torch.tensor(factors, dtype=torch.float64)[shuffled].cumsum(0)
    ends[-1] = epoch_length(len(factors), factors)
    # Systematic sampling: image i appears once per integer in (ends[i - 1], ends[i]] + u, with one random u for all.
    integers_below = (ends + torch.rand((), generator=generator, dtype=torch.float64)).floor().long()
    counts = integers_below.diff(prepend=torch.zeros(1, dtype=torch.long))
    indices = shuffled.repeat_interleave(counts)
    return indices[torch.randperm(len(indices), generator=generator)]


def dataset_factors(dataset: Any, threshold: float) -> list[float] | None:
    """The :func:`repeat_factors` of a :class:`torchdcn.data.CocoDetection`."""
    return repeat_factors([dataset.labels(i) for i in range(len(dataset))], threshold) if threshold else None
