"""Layers of deformable RoI pooling: one that is given its offsets, two that predict their own."""

from __future__ import annotations

import math
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING

from torch import nn

from ..ops import deform_roi_pool
from .deform_conv import Size, _is_count, _pair
from .predictors import GaussianLinear, ZeroLinear
from .tracing import LeafModule, refuse_proxy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class DeformRoIPool(LeafModule):
    """Deformable RoI pooling with offsets and mask from outside; without them, RoIAlign.

    Args:
        output_size: Bins of a box, ``(ph, pw)`` or one int for both.
        spatial_scale: Pixels of the map per pixel of the boxes, such as 1 / 4.
        sampling_ratio: Samples of a bin along each axis; 0 takes as many as it has pixels, rounded up.
        gamma: Scale of the offsets.

    Raises:
        ValueError: An argument that isn't such a number.

    Example:
        >>> import torch
        >>> from torchdcn.nn import DeformRoIPool
        >>> pool, boxes = DeformRoIPool(7, spatial_scale=1 / 4), torch.tensor([[0, 10.0, 20.0, 200.0, 100.0]])
        >>> pool(torch.rand(1, 16, 50, 84), boxes, torch.zeros(1, 2, 7, 7)).shape
        torch.Size([1, 16, 7, 7])
    """

    def __init__(
        self, output_size: Size, spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size, "output_size", 1)
        self.spatial_scale = _finite(spatial_scale, "spatial_scale")
        if not isinstance(sampling_ratio, Integral) or isinstance(sampling_ratio, bool):
            raise ValueError(f"sampling_ratio: expected an int, got {sampling_ratio!r}")
        self.sampling_ratio: int = int(sampling_ratio)
        self.gamma: float = _finite(gamma, "gamma")

    def forward(
        self,
        input: Tensor,  # [N, C, H, W]
        boxes: Tensor | Sequence[Tensor],  # [K, 5], or for each image [L, 4]
        offset: Tensor | None = None,  # [K, 2, ph, pw], (x, y)
        mask: Tensor | None = None,  # [K, 1, ph, pw]
    ) -> Tensor:  # [K, C, ph, pw]
        """See :func:`torchdcn.ops.deform_roi_pool`."""
        refuse_proxy(self, input)
        return deform_roi_pool(
            input, boxes, self.output_size, offset, mask, self.spatial_scale, self.sampling_ratio, self.gamma
        )

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}"
        )


class DeformRoIPoolPack(DeformRoIPool):
    """Deformable RoI pooling (v1) that predicts its own offsets, from the boxes pooled without any.

    Keys and arguments are those of mmcv's pack: the child ``offset_fc`` has three fully connected layers, the last of
    which starts at zero, so that it is RoIAlign at first.

    Args:
        output_size: Bins of a box, ``(ph, pw)`` or one int for both.
        output_channels: ``C`` of the input, and of the output.
        deform_fc_channels: Width of the layers that predict.
        spatial_scale: Pixels of the map per pixel of the boxes, such as 1 / 4.
        sampling_ratio: Samples of a bin along each axis; 0 takes as many as it has pixels, rounded up.
        gamma: Scale of the offsets.

    Raises:
        ValueError: An argument that isn't such a number.

    Example:
        >>> import torch
        >>> from torchdcn.nn import DeformRoIPoolPack
        >>> pool, boxes = DeformRoIPoolPack(7, 16, 64), [torch.tensor([[10.0, 20.0, 40.0, 30.0]])]
        >>> pool(torch.rand(1, 16, 50, 84), boxes).shape
        torch.Size([1, 16, 7, 7])
    """

    def __init__(
        self,
        output_size: Size,
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        for name, value in {"output_channels": output_channels, "deform_fc_channels": deform_fc_channels}.items():
            if not _is_count(value, 1):
                raise ValueError(f"{name}: expected an int of at least 1, got {value!r}")
        self.output_channels = int(output_channels)
        self.deform_fc_channels = int(deform_fc_channels)
        self._build()
        for layer in self.modules():
            if type(layer) is nn.Linear:
                layer.reset_parameters()  # a second time: a seed gives what it gave when published figures were made

    @property
    def bins(self) -> int:
        """``ph pw``."""
        return self.output_size[0] * self.output_size[1]

    def _layers(self, hidden: int, outputs: int, kind: type[nn.Linear] = nn.Linear) -> nn.Sequential:
        """So many fully connected layers with ReLUs after them, and one more that starts at zero."""
        widths = [self.output_channels * self.bins] + [self.deform_fc_channels] * hidden
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [kind(before, after), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, ZeroLinear(widths[-1], outputs))

    def _build(self) -> None:
        self.offset_fc = self._layers(2, 2 * self.bins)

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offset ``[K, 2, ph, pw]`` and mask ``[K, 1, ph, pw]`` or None, for boxes pooled: ``[K, C, ph, pw]``."""
        return self.offset_fc(pooled.flatten(1)).unflatten(1, (2, *self.output_size)), None

    def forward(  # type: ignore[override]  # it makes what its parent is given
        self,
        input: Tensor,  # [N, C, H, W]
        boxes: Tensor | Sequence[Tensor],  # [K, 5], or for each image [L, 4]
    ) -> Tensor:  # [K, C, ph, pw]
        """``[N, C, H, W]`` and K boxes to ``[K, C, ph, pw]``."""
        refuse_proxy(self, input)
        if input.dim() != 4 or input.shape[1] != self.output_channels:
            raise ValueError(f"input: expected [N, {self.output_channels}, H, W], got shape {list(input.shape)}")
        offset, mask = self.predict(super().forward(input, boxes))
        return super().forward(input, boxes, offset, mask)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        channels = f"output_channels={self.output_channels}, deform_fc_channels={self.deform_fc_channels}"
        return f"{super().extra_repr()}, {channels}"


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """Modulated deformable RoI pooling (v2) that predicts its own offsets and mask; mmcv's keys and arguments.

    The child ``offset_fc`` (three layers) gives the offsets, ``mask_fc`` (two layers and a sigmoid) the mask. What both
    end in starts at zero, so at first it is half of RoIAlign.

    Args:
        output_size: Bins of a box, ``(ph, pw)`` or one int for both.
        output_channels: ``C`` of the input, and of the output.
        deform_fc_channels: Width of the layers that predict.
        spatial_scale: Pixels of the map per pixel of the boxes, such as 1 / 4.
        sampling_ratio: Samples of a bin along each axis; 0 takes as many as it has pixels, rounded up.
        gamma: Scale of the offsets.
        single_trunk: Predict both as the paper does (arXiv 1811.11168, section 3.2): the one child ``offset_mask_fc``
            has two layers, drawn from a Gaussian of standard deviation 0.01, and a last one to ``3 ph pw`` numbers,
            offsets first. The paper trains it at the full learning rate.

    Raises:
        ValueError: An argument that isn't such a number.

    Example:
        >>> import torch
        >>> from torchdcn.nn import ModulatedDeformRoIPoolPack
        >>> pool, boxes = ModulatedDeformRoIPoolPack(7, 16, 64), torch.tensor([[0, 10.0, 20.0, 40.0, 30.0]])
        >>> pool(torch.rand(1, 16, 50, 84), boxes).shape
        torch.Size([1, 16, 7, 7])
    """

    def __init__(
        self,
        output_size: Size,
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
        *,
        single_trunk: bool = False,
    ) -> None:
        self.single_trunk = single_trunk
        super().__init__(output_size, output_channels, deform_fc_channels, spatial_scale, sampling_ratio, gamma)

    def _build(self) -> None:
        if self.single_trunk:
            self.offset_mask_fc = self._layers(2, 3 * self.bins, GaussianLinear)
        else:
            super()._build()
            self.mask_fc = self._layers(1, self.bins).append(nn.Sigmoid())

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offset ``[K, 2, ph, pw]`` and mask ``[K, 1, ph, pw]`` in 0..1, for boxes pooled: ``[K, C, ph, pw]``."""
        if self.single_trunk:
            prediction = self.offset_mask_fc(pooled.flatten(1)).unflatten(1, (3, *self.output_size))
            offset, logits = prediction.split([2, 1], dim=1)
            return offset, logits.sigmoid()
        offset, _ = super().predict(pooled)
        return offset, self.mask_fc(pooled.flatten(1)).unflatten(1, (1, *self.output_size))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return super().extra_repr() + (", single_trunk=True" if self.single_trunk else "")


def _finite(value: float, name: str) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return float(value)
