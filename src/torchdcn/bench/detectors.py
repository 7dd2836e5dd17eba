"""The detectors of a benchmark: which run beside each other, and how random weights come to run like trained ones."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models import create_model
from ..models.zoo import settings_of
from ..nn import DeformConv2dPack
from ..nn.layout import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from ..models.rcnn import RCNN
    from ..models.settings import Settings

OFFSET_STD = 2.0  # in pixels
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Contender:
    """A model of the zoo, or with ``regular`` the same one with regular layers in place of deformable ones."""

    name: str
    regular: bool = False
    amp: str = "none"

    def __str__(self) -> str:
        return f"{self.name}, regular" if self.regular and _deforms(settings_of(self.name)) else self.name

    @property
    def overrides(self) -> dict[str, Any]:
        """What :func:`create_model` is told: the published recipe's frozen layers, and regular ones if ``regular``."""
        found: dict[str, Any] = {"conv": None, "pool": None, "deform_groups": 1} if self.regular else {}
        if settings_of(self.name).backbone != "r18":  # which is ours, with GroupNorm, and trained from scratch
            found |= {"norm": "bn_eval", "trainable_backbone_layers": 3}
        return found

    @property
    def settings(self) -> Settings:
        """What it is made of."""
        return settings_of(self.name, **self.overrides)


def _deforms(settings: Settings) -> bool:
    return settings.conv is not None or settings.pool is not None


def group_contenders(names: Sequence[str], device: str = "cpu") -> list[list[Contender]]:
    """The models by what they would be without deformable layers, which leads each group.

    A name with ``fp16`` is for mixed precision: bf16 on the CPU.

    Raises:
        ValueError: There is no such model.

    Example:
        >>> from torchdcn.bench.detectors import group_contenders
        >>> [str(one) for one in group_contenders(["mask_rcnn_r50_fpn_mdconv_c3-c5"])[0]]
        ['mask_rcnn_r50_fpn', 'mask_rcnn_r50_fpn_mdconv_c3-c5']
    """
    found: dict[tuple[Settings, str], list[Contender]] = {}
    for name in dict.fromkeys(names):
        amp = ("bf16" if device == "cpu" else "fp16") if "fp16" in name else "none"
        regular = Contender(name, True, amp)
        group = found.setdefault((regular.settings, amp), [regular])
        if Contender(name, amp=amp).settings != regular.settings:
            group.append(Contender(name, amp=amp))
    return [[_with_zoo_name(group[0]), *group[1:]] for group in found.values()]


def _with_zoo_name(regular: Contender) -> Contender:
    """The same model under the name that the zoo has for it, if any."""
    start = regular.name.split("_fpn")[0]
    named = Contender(f"{start}_fpn", True, regular.amp)
    try:
        return named if named.settings == regular.settings else regular
    except ValueError:
        return regular


def build_detector(contender: Contender, size: tuple[int, int], device: str = "cpu") -> RCNN:
    """A model in training mode, for images of that height and width; channels-last on the CPU."""
    torch.manual_seed(0)
    overrides = contender.overrides | {"min_size": min(size), "max_size": max(size)}
    return to_device(create_model(contender.name, **overrides), torch.device(device))


def draw_image(size: tuple[int, int], device: str = "cpu") -> Tensor:  # [1, 3, H, W]
    """Noise in 0..1, channels-last."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *size, 3, generator=generator).permute(0, 3, 1, 2)
    return image.to(device)


def calibrate_random_weights(backbone: nn.Module, image: Tensor) -> None:
    """Gives random weights what training would: normalised features, and offsets of some pixels."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.training, norm.momentum) for norm in norms]
    packs = [module for module in backbone.modules() if isinstance(module, DeformConv2dPack)]
    hooks = [pack.register_forward_pre_hook(_scale_offsets) for pack in packs]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        backbone(image)
    for norm, (training, momentum) in zip(norms, before, strict=True):
        norm.train(training)
        norm.momentum = momentum
    for hook in hooks:
        hook.remove()


def _scale_offsets(pack: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    weight = pack.get_parameter("conv_offset.weight")
    scale = float(inputs[0].square().mean().sqrt()) * math.sqrt(weight[0].numel())
    nn.init.normal_(weight, std=OFFSET_STD / max(scale, 1e-12))


def autocast(amp: str, device: str) -> AbstractContextManager[Any]:
    """Mixed precision of that kind, or nothing for ``"none"``."""
    dtype = AMP[amp]
    return torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()
