"""A model in a few words: its layers, its size, what was published about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from ..nn import DeformConv2dPack
from ..weights.released import PUBLISHED
from .create import create_model
from .zoo import PAPER, settings_of

if TYPE_CHECKING:
    from .settings import Settings


@dataclass(frozen=True)
class Summary:
    """What ``torchdcn models`` and the page of models say about one.

    Attributes:
        name: For :func:`torchdcn.models.create_model`.
        layers: What deforms in it, such as ``"13 mdconv in c3-c5, mdpool"``; empty for a regular network.
        parameters: How many numbers are learned.
        box_ap: As published by mmdetection or in the paper, in percent; None where nothing was.
        mask_ap: The same for masks.
    """

    name: str
    layers: str
    parameters: int
    box_ap: float | None = None
    mask_ap: float | None = None


@cache
def summary(name: str) -> Summary:
    """Builds a model without values and looks at it.

    Args:
        name: One of :func:`torchdcn.models.list_models`.

    Raises:
        ValueError: There is no such model.

    Example:
        >>> from torchdcn.models.summary import summary
        >>> found = summary("faster_rcnn_r50_fpn_mdconv_c3-c5")
        >>> found.layers, found.parameters, found.box_ap
        ('13 mdconv in c3-c5', 42624319, 41.4)
    """
    settings = settings_of(name)
    with torch.device("meta"):  # shapes only: a hundred million numbers need not be drawn to be counted
        model = create_model(name)
    convolutions = sum(isinstance(module, DeformConv2dPack) for module in model.modules())
    layers = ", ".join(filter(None, (_convolutions(settings, convolutions), _pooling(settings))))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return Summary(name, layers, parameters, published.box_ap, published.mask_ap)
    return Summary(name, layers, parameters, *PAPER.get(name, (None, None)))


def _convolutions(settings: Settings, count: int) -> str:
    if settings.conv is None:
        return ""
    stages = "-".join(dict.fromkeys((settings.deform_stages[0], settings.deform_stages[-1])))
    groups = f" of {settings.deform_groups} groups" if settings.deform_groups > 1 else ""
    return f"{count} {settings.conv}{groups} in {stages}"


def _pooling(settings: Settings) -> str:
    if settings.pool is None:
        return ""
    return settings.pool + (" for boxes and masks" if settings.masks and settings.pool_masks else "")
