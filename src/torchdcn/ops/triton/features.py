"""Features as kernels read and write them: rows of channels, and the sums that their gradient is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def rows(features: Tensor) -> Tensor:  # [N, C, H, W] -> dense [N, H, W, C], a view if it is channels-last
    """The features as a row of channels for each pixel."""
    return features.permute(0, 2, 3, 1).contiguous()


def copied(features: Tensor) -> int:  # [N, C, H, W]
    """Bytes that ``rows`` copies of an image."""
    return 0 if _is_rows(features) else features.shape[1:].numel() * features.element_size()


def _is_rows(features: Tensor) -> bool:
    return features.permute(0, 2, 3, 1).is_contiguous()


def sum_dtype(features: Tensor) -> torch.dtype:
    """What is added up in: float32, or float64 for float64."""
    return torch.promote_types(features.dtype, torch.float32)


def finite(tensor: Tensor) -> Tensor:
    """In float64, with 0 for what is not finite."""
    return tensor.double().nan_to_num(0, 0, 0)


@dataclass(frozen=True)
class Sums:
    """Where programs add up the gradient of features.

    Under ``torch.use_deterministic_algorithms`` that is integers of 64 bits, which add up to the same bits in any
    order; see ``bilinear.scatter``.
    """

    gradient: Tensor  # [N, H, W, C], perhaps strided: what is to be written
    floats: Tensor  # dense; the gradient itself where that will do
    fixed: Tensor | None
    scale: Tensor | None  # [1] float64, steps of `fixed` per unit

    @classmethod
    def of(cls, gradient: Tensor, bound: Callable[[], Tensor]) -> Sums:  # [N, C, H, W]
        """Zeros to start from; no sum of finite terms is larger than the bound."""
        target, dtype = gradient.permute(0, 2, 3, 1), sum_dtype(gradient)
        if target.is_contiguous() and target.dtype == dtype:
            floats = target.zero_()
        else:
            floats = torch.zeros(target.shape, dtype=dtype, device=target.device)
        if not torch.are_deterministic_algorithms_enabled():
            return cls(target, floats, None, None)
        # A power of two, by which no sum can leave 63 bits.
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
        """Bytes of an image beyond the gradient itself."""
        elements, size = gradient.shape[1:].numel(), sum_dtype(gradient).itemsize
        floats = 0 if _is_rows(gradient) and gradient.element_size() == size else size
        return elements * (floats + (16 if torch.are_deterministic_algorithms_enabled() else 0))
