"""The zero start of what predicts offsets and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from .deform_conv import DeformConv2dPack
from .deform_roi_pool import DeformRoIPoolPack

if TYPE_CHECKING:
    from collections.abc import Iterator

Network = TypeVar("Network", bound=nn.Module)


def zero_offsets(model: Network) -> Network:
    """Puts every pack of a network back to its start: no sample moves, and masks are 0.5 everywhere.

    Meant for after an initialising loop over all ``nn.Conv2d`` or ``nn.Linear``, which draws the layers that predict
    offsets as well; convolutions then sample pixels away from the beginning. A pack's own ``reset_parameters`` and
    those of its children need no such repair, in whatever order they are called.

    Args:
        model: Any network, or one pack. Packs of convolution and of RoI pooling are changed in place, in these the last
            layer of what predicts; without any, nothing is changed.

    Returns:
        The same network.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: What predicts has no plain weight that could be set (weight norm, pruning, another module in its
            place). Nothing is changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.nn import ModulatedDeformConv2dPack, zero_offsets
        >>> net = nn.Sequential(ModulatedDeformConv2dPack(8, 8, 3, padding=1), nn.ReLU())
        >>> for module in net.modules():
        ...     if isinstance(module, nn.Conv2d):
        ...         _ = nn.init.kaiming_normal_(module.weight)
        >>> offset, mask = zero_offsets(net)[0].predict(torch.rand(1, 8, 20, 30))
        >>> offset.abs().max().item(), mask.unique().tolist()
        (0.0, [0.5])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    found = [parameter for path, layer in _last_layers(model) for parameter in _own_parameters(path, layer)]
    with torch.no_grad():
        for parameter in found:
            parameter.zero_()
    return model


def _last_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each layer that offsets or masks come from."""
    for path, module in model.named_modules():
        if isinstance(module, DeformConv2dPack):
            yield f"{path}.conv_offset".removeprefix("."), module.conv_offset
        elif isinstance(module, DeformRoIPoolPack):
            for name, child in module.named_children():
                linear = {p: layer for p, layer in child.named_modules() if isinstance(layer, nn.Linear)}
                for last in list(linear)[-1:]:
                    yield f"{path}.{name}.{last}".removeprefix("."), linear[last]


def _own_parameters(path: str, layer: nn.Module) -> list[nn.Parameter]:
    own = dict(layer.named_parameters(recurse=False))
    if "weight" not in own:
        raise ValueError(
            f"model: {path} predicts offsets, but is a {type(layer).__name__} without a weight or with a computed one "
            "(weight norm, pruning, ...); set what it predicts to zero yourself"
        )
    return list(own.values())
