"""Detectors over the layers and torchvision's parts."""

from .create import create_model
from .zoo import list_models

__all__ = ["create_model", "list_models"]
