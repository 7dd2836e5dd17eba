"""Training: one loop, its settings, its checkpoints."""

from .checkpoint import TrainState, read_checkpoint, restore, save_checkpoint
from .config import TrainConfig
from .loop import Interrupted, train
from .recipes import lr_factor, parameter_groups
from .record import read_record

__all__ = [
    "Interrupted",
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
