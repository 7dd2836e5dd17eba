"""The models by name: their settings, and what the paper has published about its own."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .settings import BACKBONES, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


PAPER = {"faster_rcnn_r50_dcnv2": (41.7, None), "mask_rcnn_r50_dcnv2": (43.1, 37.3)}
"""Box and mask AP in percent that the DCNv2 paper has for its own detectors (COCO 2017 val, short side of 1000 pixels,
16 epochs, without mimicking). There are no weights of them."""

# R-18 is ours, with no published model to equal: for small objects, little data, few cores, from scratch.
_SMALL: dict[str, Any] = {
    "fpn_channels": 128,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "box_head_channels": 256,
    "pool_channels": 256,
    "mask_head_channels": (64, 64),
    "min_size": 256,
    "max_size": 512,
    "rpn_min_pos_iou": 0.0,
    "roi_sampling_ratio": 2,  # what has been trained so far has it
}

# mmdetection's configuration with mdpool replaces the pooling of boxes alone; so do these names.
_SUFFIXES: dict[str, dict[str, Any]] = {
    "": {},
    "_dconv_c3-c5": {"conv": "dconv"},
    "_mdconv_c3-c5": {"conv": "mdconv"},
    "_mdconv_c3-c5_group4": {"conv": "mdconv", "deform_groups": 4},
    "_dpool": {"pool": "dpool"},
    "_mdpool": {"pool": "mdpool"},
    "_mdconv_c3-c5_mdpool": {"conv": "mdconv", "pool": "mdpool"},
}

# The detector of the DCNv2 paper (arXiv 1811.11168): at its short side of 1000, which its table of results has; its
# ablations at 800 are min_size=800, max_size=1333. What it leaves open follows the code of its authors' earlier work
# (DCNv1) where that is known: sides of the anchors, and 12000 and 6000 boxes before NMS as in Faster R-CNN.
_PAPER: dict[str, Any] = {
    "backbone": "r50",
    "conv": "mdconv",
    "fpn": False,
    "pool": "mdpool",
    "pool_masks": True,
    "pool_single_trunk": True,
    "anchor_sizes": (32, 64, 128, 256, 512),
    "min_size": 1000,
    "max_size": 1667,
    "rpn_pre_nms_top_n_train": 12000,
    "rpn_pre_nms_top_n_test": 6000,
    "rpn_post_nms_top_n_train": 2000,
}


def _zoo() -> dict[str, Settings]:
    models = {}
    for heads in ("faster", "mask"):
        for backbone in BACKBONES:
            small = _SMALL if backbone == "r18" else {}
            for suffix, layers in _SUFFIXES.items():
                settings = Settings(masks=heads == "mask", backbone=backbone, **small, **layers)
                models[f"{heads}_rcnn_{backbone}_fpn{suffix}"] = settings
        models[f"{heads}_rcnn_r50_dcnv2"] = Settings(masks=heads == "mask", **_PAPER)
    models["mask_rcnn_r50_fpn_fp16_mdconv_c3-c5"] = models["mask_rcnn_r50_fpn_mdconv_c3-c5"]
    return models


MODELS = _zoo()


def list_models() -> list[str]:
    """The names that :func:`create_model` knows.

    Example:
        >>> import torchdcn
        >>> "mask_rcnn_r18_fpn_mdconv_c3-c5" in torchdcn.models.list_models()
        True
    """
    return list(MODELS)


def settings_of(name: str, **overrides: Any) -> Settings:
    """The settings behind a name, with some of them replaced.

    Raises:
        ValueError: If there is no model of that name (the message suggests one that is near), or a value is wrong.
        TypeError: If an override is not a setting, or the name no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected one of list_models(), got {name!r}")
    if name not in MODELS:
        raise ValueError(f"name: there is no model {name!r};{_nearest(name, MODELS)} list_models() names them all")
    known = [field.name for field in fields(Settings)]
    for key in overrides:
        if key not in known:
            if key == "pretrained":  # torchvision's word of old
                raise TypeError(f"{key}: not a setting of a model; give weights= or weights_backbone=")
            place = "torchdcn.models.settings.Settings lists them"
            raise TypeError(f"{key}: not a setting of a model;{_nearest(key, known)} {place}")
    return with_overrides(MODELS[name], overrides)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" did you mean {near[0]!r}?" if near else ""


def with_overrides(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """The settings with some fields replaced. A larger ``min_size`` alone takes ``max_size`` along in proportion.

    Else the longest side would undo what was asked of the short one.

    Example:
        >>> from torchdcn.models.zoo import settings_of
        >>> settings_of("faster_rcnn_r18_fpn").max_size, settings_of("faster_rcnn_r18_fpn", min_size=800).max_size
        (512, 1600)
    """
    new = replace(settings, **overrides)
    if "min_size" not in overrides or "max_size" in overrides:
        return new
    largest, before = (max(s) if isinstance(s, tuple) else s for s in (new.min_size, settings.min_size))
    return replace(new, max_size=max(settings.max_size, round(settings.max_size * largest / before)))
