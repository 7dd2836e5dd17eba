"""The memory layout in which networks are fastest on a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from .deform_conv import DeformConv2d

Network = TypeVar("Network", bound=nn.Module)


def channels_last(model: Network) -> Network:
    """Moves a network to channels-last, in place, but for the weights that deformable convolution reads contiguous.

    ``model.to(memory_format=torch.channels_last)`` moves those too, and then every call copies them back.

    Args:
        model: Any network.

    Returns:
        The same network.

    Example:
        >>> import torch
        >>> from torchdcn.nn import ModulatedDeformConv2dPack
        >>> from torchdcn.nn.layout import channels_last
        >>> layer = channels_last(ModulatedDeformConv2dPack(8, 16, 3, padding=1))
        >>> layer.weight.is_contiguous(), layer.conv_offset.weight.is_contiguous(memory_format=torch.channels_last)
        (True, True)
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            module.weight.data = module.weight.data.contiguous()
    return model
