"""Features as kernels read and write them: rows of channels, and sums for their gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..sampling import sum_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def rows(features: Tensor) -> Tensor:  # [N, C, H, W] -> dense [N, H, W, C], a view if it is channels-last
    """Lays features out as a row of channels for each pixel."""
    return features.permute(0, 2, 3, 1).contiguous()


def copied(features: Tensor) -> int:  # [N, C, H, W]
    """Bytes that ``rows`` copies for each image."""
    return 0 if _is_rows(features) else features.shape[1:].numel() * features.element_size()


def _is_rows(features: Tensor) -> bool:
    return features.permute(0, 2, 3, 1).is_contiguous()


def finite(tensor: Tensor) -> Tensor:
    """The tensor in float64, with 0 for infinities and NaN."""
    return tensor.double().nan_to_num(0, 0, 0)


@dataclass(frozen=True)
class Sums:
    """The sums to which programs add the gradient of features.

    Under ``torch.use_deterministic_algorithms`` that is integers of 64 bits, which add up to the same bits in any
    order; see ``bilinear.scatter``.
    """

    gradient: Tensor  # [N, H, W, C], perhaps strided: the result
    floats: Tensor  # dense; the gradient itself where it has this layout and dtype
    fixed: Tensor | None
    scale: Tensor | None  # [1] float64, steps of `fixed` per unit

    @classmethod
    def of(cls, gradient: Tensor, bound: Callable[[], Tensor]) -> Sums:  # [N, C, H, W]
        """Makes sums of zeros; no sum of finite terms may exceed the bound."""
        target, dtype = gradient.permute(0, 2, 3, 1), sum_dtype(gradient)
        if target.is_contiguous() and target.dtype == dtype:
            floats = target.zero_()
        else:
            floats = torch.zeros(target.shape, dtype=dtype, device=target.device)
        if not torch.are_deterministic_algorithms_enabled():
            return cls(target, floats, None, None)
        # A power of two that keeps every sum within 63 bits.
        scale = (61 - bound().clamp(1e-200, 1e200).log2().ceil()).exp2().reshape(1)
        return cls(target, floats, torch.zeros_like(floats, dtype=torch.int64), scale)

    def write(self) -> None:
        """Writes the gradient."""
        if self.fixed is not None and self.scale is not None:
            self.floats.add_(self.fixed / self.scale)
        if self.floats is not self.gradient:
            self.gradient.copy_(self.floats)

    @staticmethod
    def scratch(gradient: Tensor) -> int:
        """Bytes that the sums of an image take beside the gradient itself."""
        elements, size = gradient.shape[1:].numel(), sum_dtype(gradient).itemsize
        floats = 0 if _is_rows(gradient) and gradient.element_size() == size else size
        return elements * (floats + (16 if torch.are_deterministic_algorithms_enabled() else 0))
