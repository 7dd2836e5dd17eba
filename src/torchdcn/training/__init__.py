"""Training: one loop, its settings, its checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import TrainState, read_checkpoint, restore, save_checkpoint
    from .config import TrainConfig
    from .distributed import ToldElsewhere
    from .loop import train
    from .recipes import lr_factor, parameter_groups
    from .record import read_record
    from .signals import Interrupted

__all__ = [
    "Interrupted",
    "ToldElsewhere",
    "TrainConfig",
    "TrainState",
    "lr_factor",
    "parameter_groups",
    "read_checkpoint",
    "read_record",
    "restore",
    "save_checkpoint",
    "train",
]

_HOMES = {
    "checkpoint": ("TrainState", "read_checkpoint", "restore", "save_checkpoint"),
    "config": ("TrainConfig",),
    "distributed": ("ToldElsewhere",),
    "loop": ("train",),
    "recipes": ("lr_factor", "parameter_groups"),
    "record": ("read_record",),
    "signals": ("Interrupted",),
}


def __getattr__(name: str) -> Any:  # `torchdcn train --help` needs the settings, and none of the rest, which is torch
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
