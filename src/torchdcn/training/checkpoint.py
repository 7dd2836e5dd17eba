"""``checkpoint.pt``: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .files import write_atomically

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
NAME = "checkpoint.pt"


@dataclass
class TrainState:
    """A run between two steps.

    ``epoch`` and ``batch`` count what is done: ``batch`` of the ``epoch``'s batches (0-based epoch), ``step`` in all.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0
    step: int = 0


def save_checkpoint(path: str | Path, state: TrainState, config: dict[str, Any]) -> None:
    """Writes the state with all random number generators, whole or not at all.

    Args:
        path: File to write.
        state: Where the run is.
        config: The run's settings, kept so that a resumed run can be compared with what it was started with.
    """
    content = {
        "version": VERSION,
        "config": config,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "epoch": state.epoch,
        "batch": state.batch,
        "step": state.step,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    write_atomically(path, lambda file: torch.save(content, file))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged or not a checkpoint of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers answer damage with IndexError, KeyError, EOFError and many more
        raise ValueError(f"{path}: damaged, or not a checkpoint ({_reason(error)})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path}: not a checkpoint of this version of torchdcn; train without --resume")
    return content


def restore(state: TrainState, content: dict[str, Any]) -> None:
    """Puts a run back to where :func:`save_checkpoint` saw it, random number generators included.

    Raises:
        ValueError: The checkpoint is of another model.
    """
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint: does not fit the model ({_reason(error)})") from error
    state.scheduler.load_state_dict(content["scheduler"])
    state.scaler.load_state_dict(content["scaler"])
    state.epoch, state.batch, state.step = content["epoch"], content["batch"], content["step"]
    torch.set_rng_state(content["rng"])
    if len(content["cuda_rng"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(content["cuda_rng"])


def _reason(error: Exception) -> str:
    """The first line of an error's message, which torch's errors have many of."""
    return (str(error).splitlines() or [type(error).__name__])[0]
