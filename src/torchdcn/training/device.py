"""Where to compute."""

from __future__ import annotations

import torch


def choose_device(name: str | None = None, local_rank: int | None = None) -> torch.device:
    """The named device, or by default CUDA where there is one, else the CPU.

    Args:
        name: As torch writes it; several processes on one host share a name without a number.
        local_rank: Which of the host's processes this is, if there are several: each takes the GPU of its number.

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
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from error
    try:
        if local_rank is None or device.type != "cuda":
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} can't be used here ({str(error).splitlines()[0]})") from error
    if device.index is not None:
        raise ValueError(f"device: {name!r} is one GPU for all processes, each of which needs its own; use 'cuda'")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"device: this host has {torch.cuda.device_count()} GPUs, too few for the process of local rank "
            f"{local_rank}; start as many processes as there are GPUs, or train on --device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # NCCL and everything that says just "cuda"
    return device
