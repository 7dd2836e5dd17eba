"""mmdetection's names as data, and state dicts under its names and ours, both ways."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from .messages import shorten_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

# Theirs and ours. {i} is a number, {leaf} and {path} are what follows, {fc} a layer that predicts offsets or a mask.
MMDET_NAMES = (
    ("backbone.{path}", "backbone.body.{path}"),
    ("neck.lateral_convs.{i}.conv.{leaf}", "backbone.fpn.inner_blocks.{i}.0.{leaf}"),
    ("neck.fpn_convs.{i}.conv.{leaf}", "backbone.fpn.layer_blocks.{i}.0.{leaf}"),
    ("rpn_head.rpn_conv.{leaf}", "rpn.head.conv.0.0.{leaf}"),
    ("rpn_head.rpn_cls.{leaf}", "rpn.head.cls_logits.{leaf}"),
    ("rpn_head.rpn_reg.{leaf}", "rpn.head.bbox_pred.{leaf}"),
    ("roi_head.bbox_roi_extractor.roi_layers.{i}.{fc}.{leaf}", "roi_heads.box_roi_pool.layers.{i}.{fc}.{leaf}"),
    ("roi_head.bbox_head.shared_fcs.0.{leaf}", "roi_heads.box_head.fc6.{leaf}"),
    ("roi_head.bbox_head.shared_fcs.1.{leaf}", "roi_heads.box_head.fc7.{leaf}"),
    ("roi_head.bbox_head.fc_cls.{leaf}", "roi_heads.box_predictor.cls_score.{leaf}"),
    ("roi_head.bbox_head.fc_reg.{leaf}", "roi_heads.box_predictor.bbox_pred.{leaf}"),
    ("roi_head.mask_roi_extractor.roi_layers.{i}.{fc}.{leaf}", "roi_heads.mask_roi_pool.layers.{i}.{fc}.{leaf}"),
    ("roi_head.mask_head.convs.{i}.conv.{leaf}", "roi_heads.mask_head.{i}.0.{leaf}"),
    ("roi_head.mask_head.upsample.{leaf}", "roi_heads.mask_predictor.conv5_mask.{leaf}"),
    ("roi_head.mask_head.conv_logits.{leaf}", "roi_heads.mask_predictor.mask_fcn_logits.{leaf}"),
)
_FIELDS = {
    "{i}": r"(?P<i>\d+)",
    "{leaf}": r"(?P<leaf>weight|bias)",
    "{path}": r"(?P<path>.+)",
    "{fc}": r"(?P<fc>(?:offset|mask)_fc\.\d+)",
}
_SCORES = "roi_heads.box_predictor.cls_score."
_OLD_OFFSET = re.compile(r"(?<!\.conv)_offset\.(weight|bias)$")  # conv2_offset.weight, now conv2.conv_offset.weight
_THEIR_GROUP_NORM = re.compile(r"(?<=\.)gn(?=\d+\.(?:weight|bias)$)")  # torchvision says bn1 whatever the norm is
_OUR_NORM = re.compile(r"(?<=\.)bn(?=\d+\.(?:weight|bias)$)")


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\})", name)
    return re.compile("".join(_FIELDS.get(part) or re.escape(part) for part in parts))


_FROM_MMDET = [(_pattern(theirs), ours) for theirs, ours in MMDET_NAMES]
_TO_MMDET = [(_pattern(ours), theirs) for theirs, ours in MMDET_NAMES]


def is_mmdet(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether names are mmdetection's."""
    return any(key.startswith(("neck.", "rpn_head.", "roi_head.")) for key in state_dict)


def to_current_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as newer versions of mmdetection write it: ``conv2_offset`` is ``conv2.conv_offset`` there.

    Raises:
        ValueError: Two names of one tensor.
    """
    keys: dict[str, str] = {}
    for key in state_dict:
        first = keys.setdefault(_OLD_OFFSET.sub(r".conv_offset.\1", key), key)
        if first != key:
            raise ValueError(f'state_dict: "{first}" and "{key}" are two names of one tensor: keep one')
    return {name: state_dict[key] for name, key in keys.items()}


def convert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An mmdetection detector's state dict under our names; its last class, the background, comes first here.

    Older files call an offset convolution ``conv2_offset``; both names are read.

    Raises:
        ValueError: Names that are not known, or two of one tensor; the message lists them.

    Example:
        >>> import torch
        >>> from torchdcn.interop import convert_mmdet
        >>> list(convert_mmdet({"neck.fpn_convs.0.conv.bias": torch.zeros(256)}))
        ['backbone.fpn.layer_blocks.0.0.bias']
    """
    state_dict = to_current_names(state_dict)
    names = {key: _rename(_THEIR_GROUP_NORM.sub("bn", key), _FROM_MMDET) for key in state_dict}
    if unknown := [key for key, name in names.items() if name is None]:
        raise ValueError(
            f"state_dict: names that no model of ours has: {shorten_list(unknown)}{hint_for_unknown(unknown)}"
        )
    return {
        name: value.roll(1, dims=0) if name.startswith(_SCORES) else value
        for key, value in state_dict.items()
        if (name := names[key])
    }


def revert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_mmdet`: a detector's state dict under mmdetection's names, background last.

    Its ``num_batches_tracked`` are 0, since nothing reads them.

    Raises:
        ValueError: Names that mmdetection has no counterpart of; the message lists them.
    """
    names = {key: _rename(key, _TO_MMDET) for key in state_dict}
    if unknown := [key for key, name in names.items() if name is None]:
        raise ValueError(f"mmdetection has no names for {shorten_list(unknown)}")
    group_norm = "backbone.body.bn1.running_mean" not in state_dict
    result = {}
    for key, value in state_dict.items():
        name = names[key] or ""
        if group_norm and name.startswith("backbone."):
            name = _OUR_NORM.sub("gn", name)
        if name.endswith("num_batches_tracked"):
            value = torch.zeros_like(value)
        elif key.startswith(_SCORES):
            value = value.roll(-1, dims=0)
        result[name] = value
    return result


def _rename(key: str, names: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in names:
        if match := pattern.fullmatch(key):
            return template.format(**match.groupdict())
    return None


def hint_for_unknown(names: Iterable[str]) -> str:
    """What to do about unknown names, for a message: those of mmdetection 1 have another meaning too."""
    if not any(name.startswith(("bbox_head.", "mask_head.")) for name in names):
        return ""
    return "; a file of mmdetection 1 goes through its tools/model_converters/upgrade_model_version.py first"
