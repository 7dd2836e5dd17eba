"""Layers of deformable convolution: one that is given its offsets, two that predict their own."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..ops import deform_conv2d
from .predictors import ZeroConv2d
from .tracing import LeafModule, refuse_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

Size = int | tuple[int, int]


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least  # NumPy's ints too


def _pair(value: Size, name: str, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(_is_count(n, least) for n in pair):
        raise ValueError(f"{name}: expected an int or a pair of ints of at least {least}, got {value!r}")
    return int(pair[0]), int(pair[1])


def _check_divisor(value: int, name: str, channels: dict[str, int]) -> None:
    for whose, n in channels.items():
        if not _is_count(value, 1) or n % value:
            raise ValueError(f"{name}: expected a divisor of {whose}={n}, got {value!r}")


class DeformConv2d(LeafModule):
    """Deformable convolution with offsets and mask from outside; torchvision's layer of that name.

    Args:
        in_channels: ``C``.
        out_channels: ``Co``.
        kernel_size: ``(kh, kw)`` or one int for both; stride, padding and dilation likewise.
        stride: Step between outputs in input pixels.
        padding: Zeros around the input.
        dilation: Step between taps.
        groups: Groups of the convolution; divides ``C`` and ``Co``.
        bias: Whether to add a learned ``[Co]``.

    Raises:
        ValueError: An argument that isn't such a number, or ``groups`` that does not divide the channels.

    Example:
        >>> import torch
        >>> from torchdcn.nn import DeformConv2d
        >>> layer = DeformConv2d(16, 32, kernel_size=3, padding=1)
        >>> layer(torch.rand(1, 16, 20, 30), torch.zeros(1, 18, 20, 30)).shape
        torch.Size([1, 32, 20, 30])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        channels = {"in_channels": in_channels, "out_channels": out_channels}
        for name, value in channels.items():
            if not _is_count(value, 1):
                raise ValueError(f"{name}: expected an int of at least 1, got {value!r}")
        _check_divisor(groups, "groups", channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size, "kernel_size", 1)
        self.stride = _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)
        self.dilation = _pair(dilation, "dilation", 1)
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias as ``nn.Conv2d`` does. A pack's ``conv_offset`` has a reset of its own, to zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        input: Tensor,  # [N, C, H, W]
        offset: Tensor,  # [N, 2 G K, Ho, Wo]
        mask: Tensor | None = None,  # [N, G K, Ho, Wo]
    ) -> Tensor:  # [N, Co, Ho, Wo]
        """See :func:`torchdcn.ops.deform_conv2d`."""
        refuse_proxy(self, input)
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """The constructor's arguments, as ``nn.Conv2d`` prints them."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        parts += [f"{n}={getattr(self, n)}" for n, default in defaults.items() if getattr(self, n) != default]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class DeformConv2dPack(DeformConv2d):
    """Deformable convolution (v1) that predicts its own offsets with the child ``conv_offset``.

    Keys and arguments are those of mmcv's pack. ``conv_offset`` starts at zero: an ordinary convolution at first.
    Where other projects call that layer otherwise, :func:`torchdcn.nn.rename_offset_keys` translates their state dicts.

    Args:
        in_channels: ``C``.
        out_channels: ``Co``.
        kernel_size: ``(kh, kw)`` or one int for both; stride, padding and dilation likewise.
        stride: Step between outputs in input pixels.
        padding: Zeros around the input.
        dilation: Step between taps.
        groups: Groups of the convolution.
        deform_groups: Groups of channels that move together; divides ``C``.
        bias: Whether to add a learned ``[Co]``.

    Raises:
        ValueError: An argument that isn't such a number, or ``groups`` or ``deform_groups`` that does not divide
            the channels.

    Example:
        >>> import torch
        >>> from torchdcn.nn import DeformConv2dPack
        >>> DeformConv2dPack(16, 32, 3, stride=2, padding=1)(torch.rand(1, 16, 20, 30)).shape
        torch.Size([1, 32, 10, 15])
    """

    channels_per_tap = 2  # dy, dx

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        _check_divisor(deform_groups, "deform_groups", {"in_channels": in_channels})
        self.deform_groups = deform_groups
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset = ZeroConv2d(
            in_channels,
            self.channels_per_tap * deform_groups * taps,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )

    def _prediction(self, input: Tensor) -> Tensor:
        """``conv_offset``'s output, for a batch only: it would take a single map, where channels come first.

        In float32 under autocast too: bfloat16 knows a position of 16 pixels to a sixteenth of a pixel only.
        """
        refuse_proxy(self, input)
        if input.dim() != 4:
            raise ValueError(f"input: expected [N, {self.in_channels}, H, W], got shape {list(input.shape)}")
        device = input.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # meta has none
        if autocast and self.conv_offset.weight.dtype == torch.float32:
            with torch.autocast(device, enabled=False):
                return cast("Tensor", self.conv_offset(input.float()))
        return cast("Tensor", self.conv_offset(input))

    def predict(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offset ``[N, 2 G K, Ho, Wo]`` in pixels, and mask ``[N, G K, Ho, Wo]`` or None, for an input."""
        return self._prediction(input), None

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]  # it makes what its parent is given
        """``[N, C, H, W]`` to ``[N, Co, Ho, Wo]``."""
        offset, mask = self.predict(input)
        return super().forward(input, offset, mask)

    def extra_repr(self) -> str:
        """The constructor's arguments, as ``nn.Conv2d`` prints them."""
        return super().extra_repr() + (f", deform_groups={self.deform_groups}" if self.deform_groups != 1 else "")


class ModulatedDeformConv2dPack(DeformConv2dPack):
    """Modulated deformable convolution (v2) that predicts its own offsets and mask; mmcv's keys and arguments.

    ``conv_offset`` gives ``3 G K`` channels: ``2 G K`` offsets, then ``G K`` that a sigmoid turns into the mask. It
    starts at zero, so at first every sample stays in place and counts half (arXiv 1811.11168, section 3.2).

    Example:
        >>> import torch
        >>> from torchdcn.nn import ModulatedDeformConv2dPack
        >>> layer = ModulatedDeformConv2dPack(16, 32, 3, padding=1, deform_groups=4)
        >>> layer(torch.rand(1, 16, 20, 30)).shape
        torch.Size([1, 32, 20, 30])
    """

    channels_per_tap = 3  # dy, dx, mask

    def predict(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offset ``[N, 2 G K, Ho, Wo]`` in pixels, and mask ``[N, G K, Ho, Wo]`` in 0..1, for an input."""
        taps = self.deform_groups * self.kernel_size[0] * self.kernel_size[1]
        offset, logits = self._prediction(input).split([2 * taps, taps], dim=1)
        return offset, logits.sigmoid()


def offset_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that predict offsets and masks, which the paper trains at 0.1 times the learning rate.

    Example:
        >>> import torch
        >>> from torchdcn.nn import ModulatedDeformConv2dPack, offset_parameters
        >>> model = ModulatedDeformConv2dPack(8, 8, 3)
        >>> slow = set(offset_parameters(model))
        >>> rest = [p for p in model.parameters() if p not in slow]
        >>> optimizer = torch.optim.SGD([{"params": rest}, {"params": list(slow), "lr": 0.002}], lr=0.02)
    """
    for module in model.modules():
        if isinstance(module, DeformConv2dPack):
            yield from module.conv_offset.parameters()
