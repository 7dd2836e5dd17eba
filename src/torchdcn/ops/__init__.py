"""Operators: functions of tensors, registered as ``torch.ops.torchdcn.*``."""

from .backends import available_backends, backend, instruction_set
from .deform_conv2d import deform_conv2d
from .deform_roi_pool import deform_roi_pool
from .torchvision import accelerate_torchvision

__all__ = [
    "accelerate_torchvision",
    "available_backends",
    "backend",
    "deform_conv2d",
    "deform_roi_pool",
    "instruction_set",
]
