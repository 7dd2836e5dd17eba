"""Training: one loop, its settings, its checkpoints."""

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
