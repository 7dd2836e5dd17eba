"""What a run needs before its first step: device, data, model, and where an earlier part of it has ended."""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import checkpoint
from .checkpoint import TrainState, read_last_good
from .device import choose_device
from .distributed import is_restart_of, job
from .progress import counter
from .recipes import base_lr, optimizer, schedule

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from .config import TrainConfig
    from .distributed import Processes

# Data and models are imported where they are used: torchvision takes a second, which `torchdcn --help` need not spend.

FREE_TO_CHANGE = {"epochs", "out", "device", "workers", "eval_every", "log_every", "checkpoint_every"} | {
    "skip_bad_images"
}
"""The settings that a resumed run may have others of: they change nothing that is already trained."""
CHANGE_WITH_A_WARNING = {"lr", "clip"}
"""Those too, for a run whose loss went astray can't go on otherwise: to the bit it would do the same once more."""


def on_cuda(config: TrainConfig) -> bool:
    """Whether the run is to be on GPUs, without a look at which."""
    return torch.cuda.is_available() and (config.device or "cuda").startswith("cuda")


def find_device(config: TrainConfig, processes: Processes) -> torch.device:
    """This process's device.

    Raises:
        ValueError: It isn't there, or can't do what the settings ask for.
    """
    device = choose_device(config.device, processes.local_rank if processes.size > 1 else None)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp: fp16 needs a CUDA device, got {device}; use bf16 here")
    return device


def open_data(config: TrainConfig, console: Console) -> Any:
    """The training images.

    Raises:
        ValueError: None are there, or nothing on them that the model learns from.
    """
    from ..data import open_dataset, require_objects, train_transforms
    from ..models.zoo import settings_of

    settings = settings_of(config.model, **config.model_settings())
    transforms = train_transforms(horizontal_flip=config.flip)
    with counter("drawing scenes", console) as progress:  # in case it is the embedded data set, for the first time
        dataset = open_dataset(config.data, "train", transforms, masks=settings.masks, progress=progress)
    if not len(dataset):
        raise ValueError(f"{dataset.annotation_file}: there are no images to train on")
    require_objects(dataset)
    if settings.masks and not dataset.has_masks:
        raise ValueError(
            f"{dataset.annotation_file}: has no masks, which {config.model} needs; use a faster_rcnn model"
        )
    return dataset


def create(config: TrainConfig, dataset: Any) -> nn.Module:
    """The model, the same in all processes."""
    from ..models import create_model

    torch.manual_seed(config.seed)
    settings = config.model_settings()
    if config.weights_backbone is not None:
        settings["weights_backbone"] = config.weights_backbone
    classes = len(dataset.class_names)
    model = create_model(config.model, weights=config.weights, num_classes=classes, **settings)
    model.class_names, model.category_ids = dataset.class_names, dataset.category_ids
    return model


def start(
    model: nn.Module, steps: int, config: TrainConfig, device: torch.device, rank: int, processes: int = 1
) -> TrainState:
    """The run before its first step. From here on each process draws for itself."""
    optimiser = optimizer(model, config, config.batch_size * processes)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    if rank:  # all have drawn the same so far; the first draws on
        torch.manual_seed(int(torch.randint(2**31, (rank,))[-1]))
    return TrainState(model, optimiser, schedule(optimiser, steps, config), scaler)


def tell_settings(config: TrainConfig, steps: int, processes: int, console: Console) -> None:
    """Prints all settings, and warns of a published recipe that is not what it says."""
    lr, together = base_lr(config, config.batch_size * processes), config.batch_size * processes
    console.print(
        f"{config.described()}\n  Highest learning rate: {lr:.4g} for {together} images a step, {steps} steps in all; "
        f"torchdcn train --config {config.out}/config.json repeats this run",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if config.recipe != "scratch" and not (config.weights or config.weights_backbone):
        warnings.warn(
            f"recipe: {config.recipe} expects pretrained weights (--weights-backbone imagenet, or --weights FILE); "
            "without them this run is from scratch: nothing is frozen, normalisation is trained",
            stacklevel=2,
        )
    if config.multi_scale and max(config.multi_scale) > (config.max_size or math.inf):
        warnings.warn(
            f"multi_scale: {max(config.multi_scale)} is more than max_size, {config.max_size}, lets a short side have",
            stacklevel=2,
        )
    if config.warmup_steps > steps / 10:
        warnings.warn(
            f"warmup_steps: the rate rises for {config.warmup_steps} of the run's {steps} steps; a lower "
            "--warmup-steps suits a short run",
            stacklevel=2,
        )


def checkpoint_to_resume(
    config: TrainConfig, dataset: Any, processes: Processes, resume: bool, console: Console
) -> dict[str, Any] | None:
    """The checkpoint in ``config.out`` to go on from, if any: the first process reads it for all.

    Without ``resume`` there is one only where ``torchrun`` has restarted the very job that wrote it.

    Raises:
        ValueError: It is of a run with other settings, where they matter for going on, or with other images; or all
            there are are damaged.
    """
    found = None
    with processes.together():
        if processes.first and (resume or job() is not None):
            found = _last_good(config, dataset, processes, resume, console)
    return processes.from_first(found)


def images_of(dataset: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the training images: an epoch's plan counts them, and must mean the same ones."""
    ids = repr(list(dataset.image_ids)).encode()
    return {"count": len(dataset), "ids": hashlib.sha256(ids).hexdigest()}


def _last_good(
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
        (folder / checkpoint.NAME).replace(folder / checkpoint.DAMAGED)  # it must not push out the good one
        warnings.warn(f"{warning} (the damaged file is now {checkpoint.DAMAGED})", stacklevel=2)
    return content


def _check_images(content: dict[str, Any], dataset: Any, folder: Path) -> None:
    then, now = content.get("images"), images_of(dataset)
    if then not in (None, now):  # checkpoints had none at first
        others = "others" if then["count"] == now["count"] else str(now["count"])
        raise ValueError(
            f"data: {folder} was trained on {then['count']} images, got {others} in {dataset.annotation_file}; put "
            "those back (--skip-bad-images goes on without some), or train without --resume"
        )


def _check_settings(content: dict[str, Any], config: TrainConfig, processes: int, folder: Path) -> None:
    # Read as settings: a checkpoint from before a setting was there has its default.
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
