"""From which checkpoint a run goes on, and whether that checkpoint fits the run."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checkpoint
from .checkpoint import read_last_good
from .distributed import is_restart_of, job_id

if TYPE_CHECKING:
    from rich.console import Console

    from .config import TrainConfig
    from .distributed import Processes

FREE_TO_CHANGE = {"epochs", "out", "device", "workers", "eval_every", "log_every", "checkpoint_every"} | {
    "skip_bad_images"
}
"""The settings that may differ in a resumed run: they change nothing that is already trained."""
CHANGE_WITH_A_WARNING = {"lr", "clip"}
"""These may differ too: a diverged run that is resumed with the same lr and clip diverges again."""


def find_checkpoint(
    config: TrainConfig, dataset: Any, processes: Processes, resume: bool, console: Console
) -> dict[str, Any] | None:
    """The content of the checkpoint in ``config.out`` to go on from, if any. Rank 0 reads it for all processes.

    Without ``resume`` a run goes on only where ``torchrun`` has restarted the very job that wrote the checkpoint.

    Raises:
        ValueError: The checkpoint is of a run with other images, or with other settings that change what is trained; or
            all checkpoints are damaged.
    """
    content = None
    with processes.raise_together():
        if processes.first and (resume or job_id() is not None):
            content = _read_and_check(config, dataset, processes, resume, console)
    return processes.broadcast_from_first(content)


def image_fingerprint(dataset: Any) -> dict[str, Any]:
    """Identifies the training images in a checkpoint. An epoch's plan refers to images by number, in this order."""
    ids = repr(list(dataset.image_ids)).encode()
    return {"count": len(dataset), "ids": hashlib.sha256(ids).hexdigest()}


def _read_and_check(
    config: TrainConfig, dataset: Any, processes: Processes, resume: bool, console: Console
) -> dict[str, Any] | None:
    folder = Path(config.out)
    try:
        found = read_last_good(folder)
    except ValueError:
        if resume:
            raise
        found = None
    if found is None:
        if resume:
            console.print(f"{folder / checkpoint.NAME} is not there: the run starts afresh", highlight=False)
        return None
    content, warning = found
    if not resume and not is_restart_of(content["job"]):
        return None
    _check_settings(content, config, processes.size, folder)
    _check_images(content, dataset, folder)
    if warning:
        # The next checkpoint renames checkpoint.pt to checkpoint-previous.pt, which is the good one now.
        (folder / checkpoint.NAME).replace(folder / checkpoint.DAMAGED)
        warnings.warn(f"{warning} (the damaged file is now {checkpoint.DAMAGED})", stacklevel=2)
    return content


def _check_images(content: dict[str, Any], dataset: Any, folder: Path) -> None:
    then, now = content.get("images"), image_fingerprint(dataset)
    if then not in (None, now):  # old checkpoints have none
        others = "others" if then["count"] == now["count"] else str(now["count"])
        raise ValueError(
            f"data: {folder} was trained on {then['count']} images, got {others} in {dataset.annotation_file}; put "
            "those back (--skip-bad-images goes on without some), or train without --resume"
        )


def _check_settings(content: dict[str, Any], config: TrainConfig, processes: int, folder: Path) -> None:
    # from_dict fills in the defaults of settings that are younger than the checkpoint.
    then, now = type(config).from_dict(content["config"]).to_dict(), config.to_dict()
    former = len(content["random_states"])
    if then.get("batch_size", 0) * former != config.batch_size * processes and (former, processes) != (1, 1):
        raise ValueError(
            f"batch_size: {folder} was trained with {former} processes of {then['batch_size']} images a step, got "
            f"{processes} of {config.batch_size}; their product must stay the same"
        )
    same = {"batch_size"} if (former, processes) != (1, 1) else set()
    for name in sorted(now.keys() - FREE_TO_CHANGE - same):
        if then.get(name) == now[name]:
            continue
        if name in CHANGE_WITH_A_WARNING:
            warnings.warn(
                f"{name}: {folder} was trained with {then.get(name)!r} up to step {content['step']}, and goes on with "
                f"{now[name]!r}",
                stacklevel=2,
            )
        else:
            raise ValueError(
                f"{name}: {folder} was trained with {then.get(name)!r}, got {now[name]!r}; resume with the same "
                "settings, or train without --resume"
            )
