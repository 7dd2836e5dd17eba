"""The smallest part of an image that makes a node say the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from .node import forward_to_node, frozen_eval, to_model_input
from .receptive_field import check_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from .node import Node

FADES = (0.125, 0.375, 0.625, 0.875)
BISECTIONS = 8
MEMORY = 0.9


def _sweep(start: float, end: float, count: int) -> list[float]:
    return [start * (end / start) ** (i / (count - 1)) for i in range(count)]


# Shares of the image that are tried. The first ones take the pixels that matter most, and the others those that score
# best: sizes fall quickly to find what is needed, then rise and fall while the scores improve with every pass.
FIRST_AREAS = (0.5, 0.3, 0.18, 0.1, 0.05)
AREAS = (
    *_sweep(0.5, 0.02, 5),
    *_sweep(0.04, 0.3, 3),
    *_sweep(0.2, 0.02, 5),
    *_sweep(0.03, 0.3, 3),
    *_sweep(0.3, 0.008, 5),
)
PASSES = 2 + len(FADES) + len(FIRST_AREAS) + len(AREAS) + BISECTIONS
"""Forward passes of a search at most; those of ``FADES`` and ``AREAS`` with a backward pass as well."""


class CancelledError(RuntimeError):
    """The caller has stopped a search."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class SaliencyRegion:
    """The smallest region found that keeps a node's features within a bound; tensors on the CPU.

    Attributes:
        mask: ``[H, W]`` bool: the pixels that are kept.
        error: ``|f(kept) - f(image)| / |f(image)|`` of the node's feature vector f, when every other pixel has the
            mean colour; at most the bound.
        area: The share of the pixels that are kept.
        fill: ``[3]``: the image's mean colour.
        curve: ``[n, 2]``: area and error of every region that was tried, from the smallest.
        passes: Forward passes taken.
    """

    mask: Tensor
    error: float
    area: float
    fill: Tensor
    curve: Tensor
    passes: int


def saliency_region(
    model: nn.Module,
    image: Tensor,
    node: Node,
    error: float = 0.2,
    *,
    smoothing: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> SaliencyRegion:
    """The error-bounded saliency region: the smallest found that keeps the node's feature vector within ``error``.

    The idea is that of arXiv 1811.11168, section 2, whose search is not published; this is ours. Every pixel has a
    score; a region is the pixels that score best, and those last that never had a derivative. The first scores are the
    sizes of the error's blurred derivative by how far a pixel is faded to the mean colour, averaged over :data:`FADES`
    of the whole image. Signs are left out: a pixel that would harm now is missed once its neighbours are back.
    Regions of the sizes :data:`FIRST_AREAS` are tried, then 21 of the sizes :data:`AREAS`, down and up between half
    of the image and 0.8 %. Each of these adds its own derivative (what it would gain from a pixel that it lacks,
    and lose with one that it has) to the scores, in which what came before counts 0.9 times as much. None of this
    depends on the bound. Of all regions tried the smallest within the bound is taken, and bisection between its size
    and the next smaller one tried, by the scores that it was made by, looks for a smaller one still. So each answer
    has been run through the network, and a larger bound never gives a larger region. It is an upper bound: that there
    is no smaller region can't be shown.

    The cost is known beforehand: :data:`PASSES` (40) forward passes up to the node at most, 25 of them with a backward
    pass.

    Args:
        model: As for :func:`~torchdcn.analysis.response`. It is left as it was.
        image: ``[3, H, W]`` as the model takes it.
        node: A position of a layer, or a box.
        error: The bound, at least 0.
        smoothing: Standard deviation of the blur in pixels, by default a hundredth of the longer side. Less gives
            smaller regions of more pieces.
        progress: Called as ``progress(done, passes)`` before the first pass and after each; returning False ends the
            search.

    Raises:
        ValueError: There is no such node, the image has a wrong shape, the bound or the smoothing is negative, the
            node's features are all zero, or there are no differentiable steps to it.
        TypeError: An image of integers.
        CancelledError: ``progress`` returned False.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.analysis import Node, saliency_region
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> region = saliency_region(net, torch.rand(3, 32, 32), Node("1", y=16, x=10), error=0.1)
        >>> region.error <= 0.1, region.area < 0.1
        (True, True)
    """
    if not isinstance(error, Real) or isinstance(error, bool) or not error >= 0:
        raise ValueError(f"error: expected a number of at least 0, got {error!r}")
    if smoothing is not None and not (math.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing: expected pixels, at least 0, got {smoothing!r}")
    with torch.inference_mode(False), frozen_eval(model):
        pixels = to_model_input(model, image).detach().clone()
        blur = max(pixels.shape[1:]) / 100 if smoothing is None else smoothing
        search = _Search(model, pixels, node, blur, progress)
        search.try_sizes()
        kept = search.find_smallest(float(error))
    area = float(kept.mask.double().mean())
    curve = sorted((_size(tried.mask) / tried.mask.numel(), tried.error) for tried in search.tried)
    return SaliencyRegion(
        mask=kept.mask.cpu(),
        error=kept.error,
        area=area,
        fill=search.fill.flatten().cpu(),
        curve=torch.tensor(curve, dtype=torch.float64),
        passes=search.passes,
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    mask: Tensor  # [H, W] bool
    error: float
    scores: Tensor  # [H, W]: its pixels are the best of these


def _size(mask: Tensor) -> int:
    """How many pixels a mask has."""
    return int(mask.sum())


@dataclass(eq=False)
class _Search:
    model: nn.Module
    image: Tensor
    node: Node
    blur: float
    progress: Callable[[int, int], object] | None
    passes: int = 0
    tried: list[_Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._report()
        self.fill = self.image.mean(dim=(1, 2), keepdim=True)
        self.features = self._features(self.image)
        self.norm = self.features.norm()
        if not float(self.norm) > 0:
            raise ValueError(f"node: the features of {self.node} are all zero here, so nothing can keep them")
        self.scores = torch.zeros_like(self.image[0])
        self.matters = torch.zeros_like(self.scores, dtype=torch.bool)  # had a derivative in some pass

    def _report(self) -> None:
        if self.progress is not None and self.progress(self.passes, PASSES) is False:
            raise CancelledError(f"stopped after {self.passes} of {PASSES} passes")

    def _features(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            features, _ = forward_to_node(self.model, image, self.node)
        self.passes += 1
        self._report()
        return features

    def _try(self, mask: Tensor) -> _Trial:
        changed = self._features(torch.where(mask, self.image, self.fill)) - self.features
        tried = _Trial(mask, float(changed.norm() / self.norm), self.scores)
        self.tried.append(tried)
        return tried

    def _gain(self, shown: Tensor) -> tuple[float, Tensor]:
        """The error, and how fast its square falls as each pixel's fading does, blurred and of mean size 1."""
        with torch.enable_grad():
            # Each pixel's share changes by zero, so the picture that is shown keeps its very bits.
            share = torch.zeros_like(self.scores).requires_grad_()
            features, _ = forward_to_node(self.model, shown + share * (self.image - self.fill), self.node)
            check_differentiable(features)
            squared = (features - self.features).square().sum()
            (slope,) = torch.autograd.grad(squared, share)
        self.passes += 1
        self._report()
        self.matters |= slope != 0
        gain = self._blurred(-slope)
        return float(squared.detach().sqrt() / self.norm), gain / gain.abs().mean().clamp(min=1e-30)

    def _blurred(self, gain: Tensor) -> Tensor:
        radius = min(math.ceil(3 * self.blur), min(gain.shape) - 1)
        if self.blur == 0 or radius < 1:
            return gain
        result: Tensor = gaussian_blur(gain[None], [2 * radius + 1] * 2, [self.blur] * 2)[0]
        return result

    def _best_pixels(self, count: int) -> Tensor:
        """The ``count`` pixels that score best; those that can't matter come last, also after negative scores."""
        mask = torch.zeros_like(self.matters)
        scores = self.scores.where(self.matters, -math.inf)
        mask.view(-1)[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
        return mask

    def try_sizes(self) -> None:
        """Tries regions of many sizes; the same ones for every bound."""
        everything = torch.ones_like(self.matters)
        for fade in FADES:
            self.scores = self.scores + self._gain(torch.lerp(self.fill, self.image, fade))[1].abs()
        self.scores = self.scores / len(FADES)
        self.tried.append(_Trial(everything, 0.0, self.scores))
        self._try(~everything)
        for area in FIRST_AREAS:
            self._try(self._best_pixels(self._pixels(area)))
        for area in AREAS:
            mask = self._best_pixels(self._pixels(area))
            error, gain = self._gain(torch.where(mask, self.image, self.fill))
            self.tried.append(_Trial(mask, error, self.scores))
            self.scores = MEMORY * self.scores + (1 - MEMORY) * gain

    def _pixels(self, area: float) -> int:
        return max(1, round(area * self.scores.numel()))

    def find_smallest(self, bound: float) -> _Trial:
        """The smallest region within a bound: of those tried, and between it and the next smaller one."""
        # Regions of one size are ordered by their error, whatever the bound: the bisection below needs the same scores.
        kept = min((t for t in self.tried if t.error <= bound), key=lambda t: (_size(t.mask), t.error))
        self.scores, high = kept.scores, _size(kept.mask)
        # All smaller regions have failed. Another bound gives the same interval or one beyond its ends, and the middles
        # of one interval are the same for all bounds. That is why regions shrink as bounds grow.
        low = max((n for t in self.tried if (n := _size(t.mask)) < high), default=high)
        for _ in range(BISECTIONS):
            if high - low < 2:
                break
            middle = (low + high) // 2
            tried = self._try(self._best_pixels(middle))
            if tried.error <= bound:
                kept, high = tried, middle
            else:
                low = middle
        return kept
