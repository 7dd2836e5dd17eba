"""The memory layout in which networks are fastest on a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .deform_conv import DeformConv2d

Network = TypeVar("Network", bound=nn.Module)


def channels_last(model: Network) -> Network:
    """Moves a network to channels-last, in place, but for the weights that deformable convolution reads contiguous.

    ``model.to(memory_format=torch.channels_last)`` moves those too, and then every call copies them back. Call this
    before an optimiser is made, or :func:`match_layout` afterwards.

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


def to_device(model: Network, device: torch.device) -> Network:
    """Moves a network to a device, in place, and on a CPU to channels-last.

    On other devices the layout stays as it is: which one is faster there has not been measured.

    Args:
        model: Any network.
        device: Where to.

    Returns:
        The same network.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.nn.layout import to_device
        >>> conv = to_device(nn.Conv2d(8, 16, 3), torch.device("cpu"))
        >>> conv.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    model.to(device)
    return channels_last(model) if device.type == "cpu" else model


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Gives what an optimiser remembers of each parameter (its momentum, say) the parameter's layout, in place.

    For after loading a checkpoint from a run in another layout (on a GPU, say), and after a network was laid out anew
    beside its optimiser. Torch's fused optimisers walk through a parameter and its momentum as through flat memory: in
    two layouts, a weight would silently get the momentum of another.

    Args:
        optimizer: Any optimiser; values and dtypes stay.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.nn.layout import channels_last, match_layout
        >>> conv = nn.Conv2d(8, 16, 3)
        >>> optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)
        >>> conv(torch.rand(1, 8, 9, 9)).sum().backward()
        >>> optimizer.step()
        >>> _ = channels_last(conv)
        >>> match_layout(optimizer)
        >>> optimizer.state[conv.weight]["momentum_buffer"].stride() == conv.weight.stride()
        True
    """
    for parameter, remembered in optimizer.state.items():
        for name, value in remembered.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                remembered[name] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
