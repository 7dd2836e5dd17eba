"""Training: one loop, its settings, its checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import TrainState, read_checkpoint, restore, save_checkpoint
    from .config import TrainConfig
    from .distributed import RemoteError
    from .entry import train
    from .optim import lr_factor, parameter_groups
    from .record import read_record
    from .signals import Interrupted

__all__ = [
    "Interrupted",
    "RemoteError",
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

# No module may have one of these names: importing it would put the module in the function's place.
_HOMES = {
    "checkpoint": ("TrainState", "read_checkpoint", "restore", "save_checkpoint"),
    "config": ("TrainConfig",),
    "distributed": ("RemoteError",),
    "entry": ("train",),
    "optim": ("lr_factor", "parameter_groups"),
    "record": ("read_record",),
    "signals": ("Interrupted",),
}


def __getattr__(name: str) -> Any:  # `torchdcn train --help` needs the settings, but not the other modules and torch
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
