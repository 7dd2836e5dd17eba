"""Layers over the operators."""

from .deform_conv import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, offset_parameters
from .deform_roi_pool import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from .offset_keys import rename_offset_keys
from .offsets import zero_offsets
from .surgery import deformable

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformRoIPoolPack",
    "deformable",
    "offset_parameters",
    "rename_offset_keys",
    "zero_offsets",
]
