"""Detectors over the layers and torchvision's parts."""

from . import _torchvision_private  # noqa: F401  # first: it says which name of torchvision is missing
from .create import create_model
from .zoo import list_models

__all__ = ["create_model", "list_models"]
