"""``checkpoint.pt``: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from ..files import write_atomically

if TYPE_CHECKING:
    from torch import nn

VERSION = 2
NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
DAMAGED = "checkpoint-damaged.pt"
"""What a damaged ``checkpoint.pt`` is called after a run has gone on from the one before."""


@dataclass
class TrainState:
    """A run between two steps.

    ``epoch`` and ``batch`` count what is done: ``batch`` of the ``epoch``'s batches (0-based epoch), ``step`` in all.
    ``skipped`` is the files that could not be read, and why.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """The states of this process's random number generators: the CPU's and, if ``device`` is one, the GPU's."""
    cuda = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def save_checkpoint(
    path: str | Path,
    state: TrainState,
    config: dict[str, Any],
    random_states: list[dict[str, Any]] | None = None,
    job: list[str] | None = None,
    images: dict[str, Any] | None = None,
) -> None:
    """Writes the state with all random number generators, whole or not at all.

    The file that was there stays beside it as ``checkpoint-previous.pt``. A checksum (SHA-256) stands in the zip's
    comment, where every reader of torch's files passes over it.

    Args:
        path: File to write.
        state: Where the run is.
        config: The run's settings, kept so that a resumed run can be compared with what it was started with.
        random_states: :func:`random_state` of every process of the run; by default of this one.
        job: The job that the run is of, if something starts it anew where it ends too soon.
        images: What tells the training images from others.

    Raises:
        OSError: It can't be written; the older files are as they were.
    """
    path = Path(path)
    content = {
        "version": VERSION,
        "config": config,
        "job": job,
        "images": images,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "epoch": state.epoch,
        "batch": state.batch,
        "step": state.step,
        "skipped": state.skipped,
        "random_states": random_states or [random_state(next(state.model.parameters()).device)],
    }
    write_atomically(path, lambda file: _write(content, file), keep=path.with_name(PREVIOUS))


class _Hashing:
    """A binary file that hashes what goes through it, and remembers why it failed: torch.save doesn't tell."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return count

    def flush(self) -> None:
        self.file.flush()


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("w+b") as file:
        hashing = _Hashing(file)
        try:
            torch.save(content, hashing)  # type: ignore[arg-type]  # all that it needs of a file
        except RuntimeError as error:
            raise hashing.error or error from None
        comment = _comment(hashing.hash.hexdigest())
        file.seek(-_LENGTH.size, os.SEEK_END)  # a zip ends in its comment and, before that, the comment's length
        file.write(_LENGTH.pack(len(comment)) + comment)


_LENGTH = struct.Struct("<H")


def _comment(digest: str) -> bytes:
    return f"sha256={digest}".encode()


def _checksum(path: Path) -> bool | None:
    """Whether the checksum is that of the file; None if it has none."""
    length = len(_comment(hashlib.sha256().hexdigest()))
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - length - _LENGTH.size
        if left < 0:
            return None
        file.seek(left)
        tail = file.read()
        if tail[: _LENGTH.size] != _LENGTH.pack(length) or not tail[_LENGTH.size :].startswith(b"sha256="):
            return None
        found = hashlib.sha256()
        file.seek(0)
        while left:
            chunk = file.read(min(left, 1 << 20))
            found.update(chunk)
            left -= len(chunk)
    found.update(_LENGTH.pack(0))  # as torch wrote it, the zip had no comment
    return tail[_LENGTH.size :] == _comment(found.hexdigest())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged or not a checkpoint of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no checkpoint")
    checksum = _checksum(path)
    if checksum is False:
        raise ValueError(f"{path}: damaged, its checksum is another's")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers answer damage with IndexError, KeyError, EOFError and many more
        raise ValueError(f"{path}: damaged, or not a checkpoint ({_reason(error)})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path}: not a checkpoint of this version of torchdcn; train without --resume")
    if checksum is None:
        raise ValueError(f"{path}: damaged, its checksum is not there")
    return content


def read_last_good(folder: str | Path) -> tuple[dict[str, Any], str] | None:
    """Reads a run's last checkpoint, or if that is damaged or gone, the one before it.

    Returns:
        The checkpoint and what to warn of, "" if nothing; None if there is no checkpoint.

    Raises:
        ValueError: No checkpoint that is there can be read; the message names each.
    """
    last, previous, fault = Path(folder) / NAME, Path(folder) / PREVIOUS, ""
    if last.is_file():
        try:
            return read_checkpoint(last), ""
        except ValueError as error:
            fault = str(error)
            if not previous.is_file():
                raise
    if not previous.is_file():
        return None
    try:
        content = read_checkpoint(previous)
    except ValueError as error:
        raise ValueError(f"{fault}; {error}" if fault else str(error)) from error
    return content, f"{fault}; going on from {previous}, step {content['step']}" if fault else ""


def restore(state: TrainState, content: dict[str, Any], rank: int = 0) -> None:
    """Puts a run back to where :func:`save_checkpoint` saw it, random number generators included.

    Args:
        state: The run, as it is when started.
        content: What :func:`read_checkpoint` gave.
        rank: Which process of the run this is. One that the checkpoint has no generators of keeps its own.

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
    state.skipped = dict(content["skipped"])
    if rank < len(content["random_states"]):
        saved = content["random_states"][rank]
        torch.set_rng_state(saved["cpu"])
        device = next(state.model.parameters()).device
        if device.type == "cuda" and saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], device)


def _reason(error: Exception) -> str:
    """The first line of an error's message, which torch's errors have many of."""
    return (str(error).splitlines() or [type(error).__name__])[0]
