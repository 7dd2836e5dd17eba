"""Residual networks whose 3x3 convolutions deform, with a feature pyramid on top."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..nn import DeformConv2dPack, ModulatedDeformConv2dPack
from ..weights.read import read_state_dict
from ._torchvision_private import IntermediateLayerGetter
from .settings import STAGES
from .weights import load_weights, translate_keys

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from typing_extensions import Self

    from .settings import Settings


class ResNetArguments(NamedTuple):
    """What torchvision's ResNet takes, and its ImageNet weights of that shape if there are any."""

    block: type[resnet.BasicBlock | resnet.Bottleneck]
    layers: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    imagenet: Any = None


RESNETS = {
    "r18": ResNetArguments(resnet.BasicBlock, (2, 2, 2, 2), imagenet=resnet.ResNet18_Weights.IMAGENET1K_V1),
    "r50": ResNetArguments(resnet.Bottleneck, (3, 4, 6, 3), imagenet=resnet.ResNet50_Weights.IMAGENET1K_V1),
    "r101": ResNetArguments(resnet.Bottleneck, (3, 4, 23, 3), imagenet=resnet.ResNet101_Weights.IMAGENET1K_V1),
    "x101-32x4d": ResNetArguments(resnet.Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=4),
}
PACKS = {"dconv": DeformConv2dPack, "mdconv": ModulatedDeformConv2dPack}


class FrozenNormBackbone(nn.Module):
    """A backbone whose batch normalisation stays in eval mode where it is frozen."""

    body: nn.Module
    norm: str

    def train(self, mode: bool = True) -> Self:
        """Sets training mode everywhere but in the frozen normalisation."""
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d) and (self.norm != "bn" or not module.weight.requires_grad):
                module.eval()
        return self


class Backbone(FrozenNormBackbone, BackboneWithFPN):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's body and FPN."""


class DilatedBackbone(FrozenNormBackbone):
    """A body whose conv5 has stride 16, without a pyramid: the DCNv2 paper's.

    The dilation is torchvision's: the first 3x3 of conv5 keeps 1 and the others have 2, as their weights were learned
    on maps of every second pixel. conv5 is reduced by a 1x1 convolution and a ReLU, as in DCNv1's own code.

    Args:
        body: A ResNet.
        widths: Channels of conv4 and conv5.
        out_channels: Channels that conv5 is reduced to.
    """

    def __init__(self, body: resnet.ResNet, widths: tuple[int, int], out_channels: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(body, {"layer3": "conv4", "layer4": "conv5"})
        self.reduce = nn.Conv2d(widths[1], out_channels, 1)
        nn.init.kaiming_uniform_(self.reduce.weight, a=1)
        nn.init.zeros_(self.reduce.bias)  # type: ignore[arg-type]  # it has one
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # [N, 3, H, W]
        """``conv4`` for proposals and the reduced ``conv5`` for boxes, both of stride 16."""
        maps: dict[str, Tensor] = self.body(x)
        maps["conv5"] = F.relu(self.reduce(maps["conv5"]))
        return maps


def stage_widths(settings: Settings) -> list[int]:
    """Channels of conv2 to conv5."""
    return [64 * RESNETS[settings.backbone].block.expansion * 2**stage for stage in range(4)]


def build_backbone(settings: Settings) -> Backbone | DilatedBackbone:
    """A body and a feature pyramid as settings describe them, randomly initialised.

    The body is ``backbone.body``, the pyramid ``backbone.fpn``. Calling it gives the five maps of strides 4, 8, 16, 32
    and 64 as an OrderedDict, finest first. Without a pyramid it gives conv4 and conv5, see :class:`DilatedBackbone`.

    Example:
        >>> import torch
        >>> from torchdcn.models.backbone import build_backbone
        >>> from torchdcn.models.zoo import settings_of
        >>> backbone = build_backbone(settings_of("faster_rcnn_r18_fpn_mdconv_c3-c5", norm="gn"))
        >>> [tuple(x.shape[1:]) for x in backbone(torch.rand(1, 3, 64, 64)).values()]
        [(128, 16, 16), (128, 8, 8), (128, 4, 4), (128, 2, 2), (128, 1, 1)]
    """
    shape = RESNETS[settings.backbone]
    norm = partial(nn.GroupNorm, 32) if settings.norm == "gn" else nn.BatchNorm2d
    body = resnet.ResNet(
        shape.block,
        list(shape.layers),
        groups=shape.groups,
        width_per_group=shape.width_per_group,
        replace_stride_with_dilation=[False, False, not settings.fpn],
        norm_layer=norm,
    )
    if settings.conv is not None:
        for stage in settings.deform_stages:
            for block in getattr(body, STAGES[stage]):
                block.conv2 = _to_pack(block.conv2, settings)
    widths = stage_widths(settings)
    backbone: Backbone | DilatedBackbone
    if settings.fpn:
        names = {f"layer{stage + 1}": str(stage) for stage in range(4)}
        backbone = Backbone(body, names, widths, settings.fpn_channels, LastLevelMaxPool())
    else:
        backbone = DilatedBackbone(body, (widths[2], widths[3]), settings.fpn_channels)
    backbone.norm = settings.norm or "bn"
    _freeze(backbone, settings)
    return backbone.train()  # sets frozen normalisation to eval mode: a new module's trains


def _to_pack(conv: nn.Conv2d, settings: Settings) -> DeformConv2dPack:
    pack = PACKS[settings.conv or "mdconv"](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # Conv2d keeps its pairs as tuples of any length
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        settings.deform_groups,
        bias=False,
    )
    # ResNet's initialisation stays; the norm that follows absorbs a mask that starts at 0.5.
    pack.weight = nn.Parameter(conv.weight.detach())
    return pack


def _freeze(backbone: FrozenNormBackbone, settings: Settings) -> None:
    layers = 5 if settings.trainable_backbone_layers is None else settings.trainable_backbone_layers
    trained = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")[: 6 if layers == 5 else layers]
    for name, child in backbone.body.named_children():
        if name not in trained:
            child.requires_grad_(False)
    if settings.norm == "frozen_bn":
        for module in backbone.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)


def load_body(backbone: FrozenNormBackbone, settings: Settings, source: str | Path) -> None:
    """Loads the weights of a regular ResNet, or of a body that deforms already, into ``backbone.body``.

    Where a file has no offsets yet, weights under a mask that starts at 0.5 are doubled: at the start the
    body then computes what the file's network does.

    Args:
        backbone: What to load into.
        settings: Those it was built from.
        source: ``"imagenet"`` for torchvision's weights, or a file.

    Raises:
        ValueError: Weights that do not fit, or there are none.
        OSError: A file that is missing, or a download that failed.
    """
    imagenet = str(source) == "imagenet"
    no_gn = f"weights_backbone: {source} is a network with batch normalisation; give norm='bn_eval' or 'bn'"
    if imagenet and settings.norm == "gn":
        raise ValueError(no_gn)
    state = _imagenet(settings.backbone) if imagenet else read_state_dict(source, "weights_backbone")
    for prefix in ("backbone.body.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            break
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    state = translate_keys(backbone.body, state, f"weights_backbone: {source}")
    own = backbone.body.state_dict()
    if settings.norm == "gn" and "bn1.running_mean" in state:
        raise ValueError(no_gn)
    for name, module in backbone.body.named_modules():
        if isinstance(module, DeformConv2dPack) and f"{name}.conv_offset.weight" not in state:
            for leaf in ("weight", "bias"):
                state[f"{name}.conv_offset.{leaf}"] = own[f"{name}.conv_offset.{leaf}"]
            if isinstance(module, ModulatedDeformConv2dPack) and f"{name}.weight" in state:
                state[f"{name}.weight"] = 2 * state[f"{name}.weight"]
    load_weights(backbone.body, state, f"weights_backbone: {source}")


def _imagenet(name: str) -> dict[str, Tensor]:
    weights = RESNETS[name].imagenet
    if weights is None:
        raise ValueError(
            f"weights_backbone: torchvision has no ImageNet weights for {name}; give a file of such a network"
        )
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # no network, or not the file it should be
        raise OSError(
            f"weights_backbone: {weights.url} could not be fetched ({error}); "
            "download it elsewhere and give the file's path"
        ) from error
