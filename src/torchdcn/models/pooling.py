"""Pooling of regions from the backbone's maps: RoIAlign, or a pack that moves its bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision import ops

from ..nn import DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from ..ops import available_backends, deform_roi_pool
from .rpn import STRIDES, full_precision

if TYPE_CHECKING:
    from .settings import Settings

Sizes = list[tuple[int, int]]

PACKS = {"dpool": DeformRoIPoolPack, "mdpool": ModulatedDeformRoIPoolPack}


class RoIAlign(ops.RoIAlign):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's layer; on a CPU by our kernel, whose backward is not bound to one thread.

    Both compute the same, up to rounding. A graph that is exported gets torchvision's operator, which other runtimes
    have.
    """

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # [N, C, H, W], [K, 5] -> [K, C, ph, pw]
        """Features of boxes; positions are in full precision whatever the features are in."""
        if input.device.type != "cpu" or torch.compiler.is_exporting() or available_backends()["cpp"]:
            pooled: Tensor = super().forward(full_precision(input), rois)
            return pooled
        return deform_roi_pool(
            input, rois, self.output_size, None, None, self.spatial_scale, max(0, self.sampling_ratio)
        )


class MultiScaleRoIPool(nn.Module):
    """Pools each box from the pyramid level that fits its size, with one layer a level.

    Level ``floor(log2(sqrt(area) / 56 + 1e-6))`` among the four finest: up to 112 px from stride 4, up to
    224 px from stride 8, and so on (mmdetection's rule). torchvision's pooler has no ``aligned`` and guesses
    the strides.

    Args:
        layers: Pooling for strides 4, 8, 16 and 32, or a single one for all boxes:
            ``layer(input, rois [K, 5]) -> [K, C, ph, pw]``.
        first: Which of the backbone's maps the first layer pools from; the next ones follow.
    """

    def __init__(self, layers: list[nn.Module], first: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.first = first

    def levels(self, boxes: Tensor) -> Tensor:
        """For boxes ``[K, 4]``, the index ``[K]`` of the layer that pools each."""
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        return (sides / 56 + 1e-6).log2().floor().clamp(0, len(self.layers) - 1).long()

    def forward(
        self,
        features: dict[str, Tensor],  # [N, C, H, W] each, finest first
        boxes: list[Tensor],  # [K_i, 4] for each image
        image_shapes: Sizes,  # noqa: ARG002  # torchvision's signature
    ) -> Tensor:  # [sum of K_i, C, ph, pw]
        """Features of all images' boxes, in order."""
        maps = list(features.values())[self.first :]
        images = torch.cat([box.new_full((len(box), 1), i) for i, box in enumerate(boxes)])
        rois = torch.cat([images, torch.cat(boxes)], dim=1)
        levels = self.levels(rois[:, 1:])
        order, pooled = [], []
        for level, layer in enumerate(self.layers):
            chosen = torch.where(levels == level)[0]
            order.append(chosen)
            pooled.append(layer(maps[level], rois[chosen]))
        # Every layer is called, on no boxes too, so that each has a gradient on every rank.
        return torch.cat(pooled)[torch.cat(order).argsort()].to(maps[0].dtype)


def build_pool(settings: Settings, size: int, kind: str | None) -> MultiScaleRoIPool:
    """Pooling to ``size`` x ``size`` bins: RoIAlign where ``kind`` is None, else packs, one for each level."""
    ratio = settings.roi_sampling_ratio or 0  # the layers' word for "as many as the bin has pixels"
    strides = STRIDES[:4] if settings.fpn else (16,)
    if kind is None:
        layers: list[nn.Module] = [RoIAlign((size, size), 1 / stride, ratio, aligned=True) for stride in strides]
    else:
        trunk = {"single_trunk": True} if kind == "mdpool" and settings.pool_single_trunk else {}
        layers = [
            PACKS[kind](size, settings.fpn_channels, settings.pool_channels, 1 / stride, ratio, **trunk)
            for stride in strides
        ]
    return MultiScaleRoIPool(layers, first=0 if settings.fpn else 1)
