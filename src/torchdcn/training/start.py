"""What a run needs before its first step: checked settings, device, data, model, and its first state."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .checkpoint import TrainState
from .device import choose_device
from .optim import base_lr, build_optimizer, build_schedule
from .progress import counter

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from ..models.settings import Settings
    from .config import TrainConfig
    from .distributed import Processes

# Data and models are imported where they are used: torchvision takes a second, which `torchdcn --help` must not take.


class Prepared(NamedTuple):
    """What :func:`prepare` has found.

    Attributes:
        settings: The settings of the model.
        device: The device of this process.
    """

    settings: Settings
    device: torch.device


def prepare(config: TrainConfig, processes: Processes) -> Prepared:
    """Checks everything that can be wrong without a look at the data, which may have to be drawn or converted.

    Raises:
        ValueError: There is no such model or device, or the device can't do what the settings ask for.
        TypeError: There is no such setting of the model.
        OSError: There is no such file of weights.
    """
    from ..models.zoo import settings_of
    from ..weights.messages import existing_file

    settings = settings_of(config.model, **config.model_settings())
    if config.weights not in (None, "coco"):
        existing_file(str(config.weights))
    if config.weights_backbone not in (None, "imagenet"):
        existing_file(str(config.weights_backbone), "weights_backbone")
    return Prepared(settings, find_device(config, processes))


def uses_cuda(config: TrainConfig) -> bool:
    """Whether the run is to be on GPUs, of whatever number."""
    return torch.cuda.is_available() and (config.device or "cuda").startswith("cuda")


def find_device(config: TrainConfig, processes: Processes) -> torch.device:
    """The device of this process.

    Raises:
        ValueError: There is no such device, or it can't do what the settings ask for.
    """
    device = choose_device(config.device, processes.local_rank if processes.size > 1 else None)
    if config.amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp: fp16 needs a CUDA device, got {device}; use bf16 here")
    return device


def open_data(config: TrainConfig, settings: Settings, console: Console) -> Any:
    """The training images.

    Args:
        config: The settings of the run.
        settings: The settings of the model.
        console: Where the progress of drawing the embedded data set is shown.

    Raises:
        ValueError: There are no images, no objects on them, or no masks for a model that needs them.
    """
    from ..data import open_dataset, require_objects, train_transforms

    transforms = train_transforms(horizontal_flip=config.flip)
    with counter("drawing scenes", console) as progress:
        dataset = open_dataset(config.data, "train", transforms, masks=settings.masks, progress=progress)
    if not len(dataset):
        raise ValueError(f"{dataset.annotation_file}: there are no images to train on")
    require_objects(dataset)
    if settings.masks and not dataset.has_masks:
        raise ValueError(
            f"{dataset.annotation_file}: has no masks, which {config.model} needs; use a faster_rcnn model"
        )
    return dataset


def build_model(config: TrainConfig, dataset: Any) -> nn.Module:
    """The model with the classes of the data set; the seed makes it the same in all processes."""
    from ..models import create_model

    torch.manual_seed(config.seed)
    settings = config.model_settings()
    if config.weights_backbone is not None:
        settings["weights_backbone"] = config.weights_backbone
    classes = len(dataset.class_names)
    model = create_model(config.model, weights=config.weights, num_classes=classes, **settings)
    model.class_names, model.category_ids = dataset.class_names, dataset.category_ids
    return model


def initial_state(
    model: nn.Module, steps: int, config: TrainConfig, device: torch.device, processes: Processes
) -> TrainState:
    """The run before its first step. From here on each process draws random numbers of its own."""
    optimiser = build_optimizer(model, config, config.batch_size * processes.size)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    if processes.rank:  # all processes have drawn the same so far; rank 0 keeps its generator
        torch.manual_seed(int(torch.randint(2**31, (processes.rank,))[-1]))
    return TrainState(model, optimiser, build_schedule(optimiser, steps, config), scaler)


def print_settings(config: TrainConfig, steps: int, processes: int, console: Console) -> None:
    """Prints all settings, and warns of those that do not fit together."""
    batch = config.batch_size * processes
    console.print(
        f"{config.describe()}\n  Highest learning rate: {base_lr(config, batch):.4g} for {batch} images a step, "
        f"{steps} steps in all; torchdcn train --config {config.out}/config.json repeats this run",
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
