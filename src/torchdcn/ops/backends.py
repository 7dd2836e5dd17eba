"""Which implementation runs where: C++ kernels on a CPU, Triton kernels on NVIDIA GPUs, the reference elsewhere."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

NAMES = ("reference", "cpp", "triton")
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16")  # in the order of csrc's enum

library = torch.library.Library("torchdcn", "DEF")
"""Every operator of this project is registered through this object."""

library.define("_cpp_isa() -> int")

_forced: ContextVar[str | None] = ContextVar("torchdcn_backend", default=None)


@cache
def _load_cpp() -> str:
    """Loads the C++ kernels; returns "" or the reason why they are missing."""
    asked = os.environ.get("TORCHDCN_ISA", INSTRUCTION_SETS[0])
    if asked not in INSTRUCTION_SETS:
        return f"TORCHDCN_ISA: expected one of {', '.join(INSTRUCTION_SETS)}, got {asked!r}"
    found = sorted(Path(__file__).parent.parent.glob("_C*.so"))
    if not found:
        return (
            "the C++ extension was not built (is there a C++17 compiler?); install g++ or clang, then run "
            "`make clean setup` in the project's folder, or install the package again"
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"the C++ extension {found[0]} does not load: {error}"
    return ""


@cache
def _load_triton() -> str:
    """Loads the Triton kernels; returns "" or the reason why they are missing."""
    if torch.version.hip:
        return "the Triton kernels were made for NVIDIA GPUs; this is a build of torch for AMD's"
    try:
        # Takes half a second, and not every platform has Triton.
        from .triton import bilinear, run  # noqa: F401
    except ImportError as error:
        return f"Triton does not import ({error}); install it with `pip install triton`"
    return ""


def _interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors: for tests, and to step through a kernel."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _triton_reason() -> str:
    if not (torch.cuda.is_available() or _interpreted()):
        return (
            "torch finds no CUDA device; to run the kernels on CPU tensors, slowly, set TRITON_INTERPRET=1 before "
            "Python starts"
        )
    return _load_triton() if _interpreted() else _triton_serves(torch.device("cuda", torch.cuda.current_device()))


@cache
def _triton_serves(device: torch.device) -> str:
    """Returns "" if the Triton kernels serve a CUDA device, else the reason why not."""
    if torch.cuda.is_available() and (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"the Triton kernels need compute capability 8.0, {device} has {'.'.join(map(str, capability))}"
    return _load_triton()


def instruction_set() -> str:
    """Names the instruction set that the C++ kernels use: the best of this CPU, or ``TORCHDCN_ISA`` if that is less.

    Raises:
        RuntimeError: There are no C++ kernels; the message says why.

    Example:
        >>> from torchdcn.ops import available_backends, instruction_set
        >>> available_backends()["cpp"] != "" or instruction_set() in ("portable", "avx2", "avx512", "avx512_bf16")
        True
    """
    if reason := _load_cpp():
        raise RuntimeError(f"no C++ kernels here: {reason}")
    return INSTRUCTION_SETS[torch.ops.torchdcn._cpp_isa()]


def available_backends() -> dict[str, str]:
    """Names every backend, with "" where it can be used on this machine and otherwise the reason why not.

    Example:
        >>> import torchdcn
        >>> torchdcn.ops.available_backends()["reference"]
        ''
    """
    return {
        "reference": "",
        "cpp": _load_cpp(),
        "triton": _triton_reason(),
    }


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces one implementation of every operator within a ``with`` block, in this thread.

    A backward pass uses the backend of its forward, also outside the block. Not so in compiled code: ``torch.compile``
    keeps the reference for good where it was forced while tracing, and otherwise chooses at every call, forward and
    backward each for itself.

    Args:
        name: ``"reference"`` (plain PyTorch, any device), ``"cpp"`` (CPU) or ``"triton"`` (CUDA; CPU tensors too where
            ``TRITON_INTERPRET=1`` was set before Python started, which is for tests).

    Raises:
        ValueError: If there is no backend of that name.
        RuntimeError: If it can't be used on this machine; the message says why.

    Example:
        >>> import torch, torchdcn
        >>> x, offset, weight = torch.rand(1, 4, 8, 8), torch.zeros(1, 18, 8, 8), torch.rand(4, 4, 3, 3)
        >>> with torchdcn.ops.backend("reference"):
        ...     y = torchdcn.ops.deform_conv2d(x, offset, weight, padding=1)
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    if reason := available_backends()[name]:
        raise RuntimeError(f"backend {name!r} can't be used here: {reason}")
    with using(name):
        yield


@contextmanager
def using(name: str) -> Iterator[None]:
    """Forces a backend as ``backend`` does, without its checks: for one that ran before."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def backend_for(device: torch.device, has_kernels_of: Collection[str] = NAMES) -> str:
    """The backend that serves tensors of a device: the forced one, or the fastest that an operator has kernels of."""
    forced = _forced.get()
    if forced is not None and forced not in has_kernels_of:
        raise RuntimeError(f"backend({forced!r}): this operator runs on {' or '.join(map(repr, has_kernels_of))} only")
    if forced == "cpp" and device.type not in ("cpu", "meta"):
        raise RuntimeError(f'backend("cpp") serves CPU tensors only, got a tensor on {device}')
    if forced == "triton" and device.type not in ("cuda", "meta") and not (device.type == "cpu" and _interpreted()):
        raise RuntimeError(f'backend("triton") serves CUDA tensors only, got a tensor on {device}')
    if forced == "triton" and device.type == "cuda" and (reason := _triton_serves(device)):
        raise RuntimeError(f'backend("triton") can\'t be used here: {reason}')
    if forced is not None:
        return forced
    if device.type == "cpu" and "cpp" in has_kernels_of:
        if not _load_cpp():
            return "cpp"
        _warn_once("the CPU", _load_cpp())
    elif device.type == "cuda" and "triton" in has_kernels_of:
        if not _triton_serves(device):
            return "triton"
        _warn_once(str(device), _triton_serves(device))
    return "reference"


@cache
def _warn_once(where: str, reason: str) -> None:
    warnings.warn(f"torchdcn runs its slow reference implementation on {where}: {reason}", stacklevel=4)
