"""Weights as tensors and names: files of ours, of torch and of mmdetection, and the published ones.

This room knows no model; :mod:`torchdcn.models.weights` loads what it reads into one, and saves one.
"""

from .mmdet import convert_mmdet
from .read import WeightsFile, read_state_dict, read_weights
from .released import released_weights
from .torchdcn_file import WeightsInfo, read_info, write_weights

__all__ = [
    "WeightsFile",
    "WeightsInfo",
    "convert_mmdet",
    "read_info",
    "read_state_dict",
    "read_weights",
    "released_weights",
    "write_weights",
]
