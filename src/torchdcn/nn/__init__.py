"""Layers over the operators."""

from .deform_conv import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, offset_parameters
from .surgery import deformable

__all__ = ["DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2dPack", "deformable", "offset_parameters"]
