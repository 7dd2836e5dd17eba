"""The optimiser and the learning-rate schedule of each recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..nn import offset_parameters

if TYPE_CHECKING:
    from .config import TrainConfig

MOMENTUM = 0.9
WARMUP_FROM = 0.001


def base_lr(config: TrainConfig, images: int | None = None) -> float:
    """The highest learning rate of a run; in proportion to its batch if ``config.lr_batch`` is given.

    Args:
        config: The run's settings.
        images: Images a step in all processes; by default ``config.batch_size``.

    Example:
        >>> from torchdcn.training import TrainConfig
        >>> from torchdcn.training.optim import base_lr
        >>> base_lr(TrainConfig("synthetic", "mask_rcnn_r50_fpn", "runs/try", recipe="1x"), images=8)
        0.01
    """
    scale = (images or config.batch_size) / config.lr_batch if config.lr_batch else 1.0
    return config.lr * scale


def parameter_groups(model: nn.Module, config: TrainConfig, images: int | None = None) -> list[dict[str, Any]]:
    """Splits the trainable parameters by learning rate and weight decay.

    Offset convolutions learn at ``config.offset_lr_factor`` times the rate (arXiv 1811.11168). The recipe ``scratch``
    does not decay norms and biases: pulling them to zero makes a function no simpler. The published recipes decay all.

    Args:
        model: The model to train.
        config: The run's settings.
        images: Images a step in all processes; by default ``config.batch_size``.

    Raises:
        ValueError: Every parameter is frozen.
    """
    offsets = {id(p) for p in offset_parameters(model)}
    lr, decay_all = base_lr(config, images), config.recipe != "scratch"
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = id(parameter) in offsets, parameter.dim() > 1 or decay_all
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("model: every parameter is frozen, there is nothing to train")
    return [
        {
            "params": parameters,
            "lr": lr * (config.offset_lr_factor if is_offset else 1.0),
            "weight_decay": config.weight_decay if is_decayed else 0.0,
        }
        for (is_offset, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(model: nn.Module, config: TrainConfig, images: int | None = None) -> torch.optim.Optimizer:
    """The optimiser of ``config.recipe``: AdamW for ``scratch``, SGD with a momentum of 0.9 for the published ones.

    Args and errors are those of :func:`parameter_groups`.
    """
    groups = parameter_groups(model, config, images)
    # Fused optimisers pass over the memory once instead of ten times: on a CPU that takes a quarter of the time.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    if config.recipe == "scratch":
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, lr=base_lr(config, images), momentum=MOMENTUM, fused=fused)


def lr_factor(step: int, steps: int, config: TrainConfig) -> float:
    """The factor of the learning rate at a step (0-based) of a run of ``steps``.

    It rises linearly to 1 over ``config.warmup`` of the run, and is divided by 10 at each of ``config.lr_drops``. All
    these are shares of the run, so that a run of one epoch has the whole schedule too. With ``config.warmup_steps`` it
    rises from 0.001 over that number of steps instead, as in mmdetection's published runs.

    Example:
        >>> from torchdcn.training import TrainConfig, lr_factor
        >>> config = TrainConfig("synthetic", "mask_rcnn_r18_fpn", "runs/try", warmup=0.1)
        >>> [round(lr_factor(step, 100, config), 3) for step in (0, 9, 50, 75)]
        [0.1, 1.0, 1.0, 0.1]
    """
    warmup = config.warmup_steps or int(steps * config.warmup)
    rising = 1.0
    if step < warmup:
        rising = (step + 1) / warmup
        if config.warmup_steps:
            rising = WARMUP_FROM + (1 - WARMUP_FROM) * step / warmup
    dropped = sum(step >= round(steps * share) for share in config.lr_drops)
    return float(rising * 0.1**dropped)


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int, config: TrainConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """The scheduler of :func:`lr_factor`; call its ``step()`` once after every step of the optimiser."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, config))
