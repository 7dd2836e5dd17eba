"""Layers over the operators."""

from .deform_conv import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, offset_parameters

__all__ = ["DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2dPack", "offset_parameters"]
