"""``checkpoint.pt``: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from ..files import write_atomically
from ..nn.layout import match_layout

if TYPE_CHECKING:
    from torch import nn

VERSION = 2
NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
DAMAGED = "checkpoint-damaged.pt"
"""The name of a damaged ``checkpoint.pt`` after a run has gone on from the one before."""


@dataclass
class TrainState:
    """A run between two steps.

    Attributes:
        model: The detector.
        optimizer: Its optimiser.
        scheduler: The learning-rate schedule, as many steps ahead as the run.
        scaler: The loss scaler, which does nothing without fp16.
        epoch: Epochs that are done.
        batch: Batches of the present epoch that are done.
        step: Steps that are done, in all epochs.
        skipped: The files that could not be read, and why.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
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

    The file that was there stays beside it as ``checkpoint-previous.pt``. A checksum (SHA-256) stands in the comment of
    the zip file that a checkpoint is; other readers of torch's files pass over it.

    Args:
        path: File to write.
        state: Where the run is.
        config: The settings of the run, with which those of a resumed run are compared.
        random_states: :func:`random_state` of every process of the run; by default of this one.
        job: Identifies the call of ``torchrun``, which may restart the run.
        images: Identifies the training images.

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


class _HashingFile:
    """A binary file that hashes what is written, and keeps the error of a failed write, which torch.save replaces."""

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


# A zip file ends in the length of its comment and the comment. torch.save writes none, so the length is 0.
_COMMENT_LENGTH = struct.Struct("<H")


def _comment(digest: str) -> bytes:
    return f"sha256={digest}".encode()


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("w+b") as file:
        hashing = _HashingFile(file)
        try:
            torch.save(content, hashing)  # type: ignore[arg-type]  # it has all that torch.save calls
        except RuntimeError as error:
            raise hashing.error or error from None
        comment = _comment(hashing.hash.hexdigest())
        file.seek(-_COMMENT_LENGTH.size, os.SEEK_END)
        file.write(_COMMENT_LENGTH.pack(len(comment)) + comment)


def _has_right_checksum(path: Path) -> bool | None:
    """Compares the checksum in the comment with the rest of the file; None if there is none.

    The CRC32 of the zip's records, which ``ZipFile.testzip`` compares, would not do: it leaves out headers, padding and
    parts of the directory.
    """
    length = len(_comment(hashlib.sha256().hexdigest()))
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - length - _COMMENT_LENGTH.size
        if left < 0:
            return None
        file.seek(left)
        tail = file.read()
        comment = tail[_COMMENT_LENGTH.size :]
        if not tail.startswith(_COMMENT_LENGTH.pack(length)) or not comment.startswith(b"sha256="):
            return None
        found = hashlib.sha256()
        file.seek(0)
        while left:
            chunk = file.read(min(left, 1 << 20))
            found.update(chunk)
            left -= len(chunk)
    found.update(_COMMENT_LENGTH.pack(0))  # as torch.save wrote it
    return comment == _comment(found.hexdigest())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged or not a checkpoint of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no checkpoint")
    right_checksum = _has_right_checksum(path)
    if right_checksum is False:
        raise ValueError(f"{path}: damaged, its checksum is another's")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch answers damage with IndexError, KeyError, EOFError and many more
        raise ValueError(f"{path}: damaged, or not a checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path}: not a checkpoint of this version of torchdcn; train without --resume")
    if right_checksum is None:
        raise ValueError(f"{path}: damaged, its checksum is not there")
    return content


def read_last_good(folder: str | Path) -> tuple[dict[str, Any], str] | None:
    """Reads a run's last checkpoint, or the one before it if that is damaged or missing.

    Returns:
        The content of the checkpoint, and a warning to show ("" for none); None if there is no checkpoint.

    Raises:
        ValueError: No checkpoint can be read; the message names each that is there.
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

    The learning rates are those of the state's own schedule at the checkpoint's step: a resumed run may have another
    ``lr`` or number of epochs.

    Args:
        state: The run before its first step.
        content: What :func:`read_checkpoint` gave.
        rank: Which process of the run this is. A process that the checkpoint has no generators of keeps its own.

    Raises:
        ValueError: The checkpoint is of another model.
    """
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(_with_rates(content["optimizer"], state.scheduler, content["step"]))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint: does not fit the model ({_first_line(error)})") from error
    match_layout(state.optimizer)
    state.scheduler.load_state_dict({**content["scheduler"], "base_lrs": state.scheduler.base_lrs})
    state.scaler.load_state_dict(content["scaler"])
    state.epoch, state.batch, state.step = content["epoch"], content["batch"], content["step"]
    state.skipped = dict(content["skipped"])
    if rank < len(content["random_states"]):
        saved = content["random_states"][rank]
        torch.set_rng_state(saved["cpu"])
        device = next(state.model.parameters()).device
        if device.type == "cuda" and saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], device)


def _with_rates(optimizer: dict[str, Any], scheduler: torch.optim.lr_scheduler.LambdaLR, step: int) -> dict[str, Any]:
    """A saved optimiser with the learning rates of a schedule.

    Raises:
        ValueError: The schedule is of another number of parameter groups.
    """
    rates = [
        {"initial_lr": base, "lr": base * factor(step)}
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    groups = [saved | rate for saved, rate in zip(optimizer["param_groups"], rates, strict=True)]
    return {**optimizer, "param_groups": groups}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
