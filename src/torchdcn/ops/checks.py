"""Checks that the operators share: tensors, dtypes, devices and numbers, each named when it does not fit."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

SIXTEEN_BITS = frozenset((torch.bfloat16, torch.float16))
FLOATS = SIXTEEN_BITS | {torch.float64, torch.float32}
LARGEST = 2**31 - 1
"""The largest size or step. Sums and products of two of them stay within 64 bits, in the kernels too."""


def check_is_tensor(name: str, value: Any) -> None:
    """Raises TypeError for anything but a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_tensor(name: str, tensor: Tensor, dimensions: int, input: Tensor) -> None:
    """Raises unless a tensor is strided, has so many dimensions, and is on input's device."""
    if tensor.dim() != dimensions:
        raise ValueError(f"{name}: expected {dimensions} dimensions, got shape {list(tensor.shape)}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got one of layout {tensor.layout}")
    if tensor.device != input.device:
        raise RuntimeError(f"{name}: expected device {input.device} as input's, got {tensor.device}")


def check_dtype(name: str, tensor: Tensor, input: Tensor, *, position: bool = False) -> None:
    """Raises unless a tensor has input's dtype; offsets, masks and boxes may be float32 beside 16 bits."""
    dtype = input.dtype
    if dtype not in FLOATS:
        raise TypeError(f"input: expected float64, float32, bfloat16 or float16, got {dtype}")
    if tensor.dtype != dtype and not (position and tensor.dtype == torch.float32 and dtype in SIXTEEN_BITS):
        expected = f"{dtype} or torch.float32" if position and dtype in SIXTEEN_BITS else str(dtype)
        raise TypeError(f"{name}: expected {expected} beside an input of {dtype}, got {tensor.dtype}")


def check_pair(name: str, pair: Sequence[int], least: int) -> None:
    """Raises unless a pair of ints is within its limits."""
    if len(pair) != 2:
        raise ValueError(f"{name}: expected an int or a pair of ints, got {tuple(pair)}")
    if pair[0] < least or pair[1] < least:
        raise ValueError(f"{name}: expected at least {least}, got {tuple(pair)}")
    if pair[0] > LARGEST or pair[1] > LARGEST:
        raise ValueError(f"{name}: expected at most 2^31 - 1, got {tuple(pair)}")


def as_pair(value: Any, name: str) -> list[int]:
    """Makes a pair of an int or a pair of ints; numpy's ints are ints too.

    Raises:
        TypeError: For anything else.
        ValueError: For another number of ints, or one that 64 bits don't hold.
    """
    if type(value) is int:
        pair = [value, value]
    elif _is_int(value):
        pair = [_plain(value)] * 2
    elif isinstance(value, (tuple, list)) and all(map(_is_int, value)):
        pair = [_plain(n) for n in value]
    else:
        raise TypeError(f"{name}: expected an int or a pair of ints, got {value!r}")
    if len(pair) != 2:  # torch would take a list of one int for both
        raise ValueError(f"{name}: expected an int or a pair of ints, got {tuple(pair)}")
    for n in pair:
        if type(n) is int and abs(n) > LARGEST:  # torch's own conversion would fail without the name
            bound = "at least 0" if n < 0 else "at most 2^31 - 1"
            raise ValueError(f"{name}: expected {bound}, got {tuple(pair)}")
    return pair


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt, Integral)) and not isinstance(value, bool)


def _plain(value: Any) -> int:
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore[return-value]  # as an int
