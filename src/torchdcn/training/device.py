"""Where to compute."""

from __future__ import annotations

import torch


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or by default CUDA where there is one, else the CPU.

    Raises:
        ValueError: There is no such device here.

    Example:
        >>> from torchdcn.training.device import choose_device
        >>> choose_device("cpu")
        device(type='cpu')
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} can't be used here ({str(error).splitlines()[0]})") from error
    return device
