"""The models by name: their settings, what has been published about them, and where their weights are."""

from __future__ import annotations

import difflib
import math
import numbers
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

NORMS = ("bn", "bn_eval", "frozen_bn", "gn")
CONVS = ("dconv", "mdconv")
STAGES = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}


@dataclass(frozen=True)
class Settings:
    """A detector, apart from its number of classes. Names are torchvision's where it has one.

    The defaults are those of the published models (mmdetection's ``configs/dcnv2``).

    Attributes:
        masks: Mask R-CNN rather than Faster R-CNN.
        backbone: ``"r18"``, ``"r50"``, ``"r101"`` or ``"x101-32x4d"``.
        conv: What replaces the 3x3 convolutions of ``deform_stages``: ``"dconv"``, ``"mdconv"`` or None.
        deform_groups: Groups of channels that move together.
        deform_stages: Of ``"c2"`` to ``"c5"``, the paper's names of torchvision's ``layer1`` to ``layer4``.
        norm: ``"bn"`` trains batch normalisation; ``"bn_eval"`` keeps its statistics, ``"frozen_bn"`` also
            its weights; ``"gn"`` is GroupNorm with 32 groups. None chooses ``"bn_eval"`` for pretrained
            weights, and from scratch ``"gn"`` for R-18 and ``"bn"`` otherwise.
        trainable_backbone_layers: 0 to 5, counted from the last stage. None: 3 for pretrained weights, or 5.
        fpn_channels: Channels of the feature pyramid.
        anchor_sizes: Sides of the anchors in pixels, for each of the five pyramid levels.
        aspect_ratios: Height by width of the anchors.
        box_head_channels: Width of the two fully connected layers.
        mask_head_channels: Width of each convolution of the mask head.
        min_size: Short side that images are resized to, in pixels. In training one of several is drawn; the
            last one counts otherwise.
        max_size: Upper bound of the long side.
        image_mean: Subtracted from images in 0..1.
        image_std: Divides them afterwards.
        rpn_pre_nms_top_n_train: Proposals kept on each level before NMS.
        rpn_pre_nms_top_n_test: The same outside training.
        rpn_post_nms_top_n_train: Proposals kept in all.
        rpn_post_nms_top_n_test: The same outside training.
        rpn_nms_thresh: IoU above which the worse of two proposals of a level goes.
        rpn_fg_iou_thresh: IoU with an object from which an anchor is positive.
        rpn_bg_iou_thresh: IoU below which it is negative.
        rpn_min_pos_iou: An object's best anchor is positive too from this IoU on.
        rpn_batch_size_per_image: Anchors that count in the loss.
        rpn_positive_fraction: The share of positives among them, at most.
        rpn_score_thresh: Proposals below this objectness are dropped.
        roi_sampling_ratio: Samples per bin and axis of RoIAlign. None: as many as the bin has pixels.
        box_score_thresh: Detections must score more.
        box_nms_thresh: IoU above which the worse of two detections of a class goes.
        box_detections_per_img: The most detections of an image.
        box_fg_iou_thresh: IoU with an object from which a proposal is positive.
        box_bg_iou_thresh: IoU below which it is negative.
        box_batch_size_per_image: Proposals that count in the loss.
        box_positive_fraction: The share of positives among them, at most.
        bbox_reg_weights: Factors of the box deltas (x, y, width, height); mmdet has the inverse.

    Raises:
        ValueError: A value that does not fit; the message names the setting.

    Example:
        >>> from torchdcn.models.zoo import settings_of
        >>> settings_of("mask_rcnn_r50_fpn_mdconv_c3-c5").conv
        'mdconv'
    """

    masks: bool
    backbone: str
    conv: str | None = None
    deform_groups: int = 1
    deform_stages: tuple[str, ...] = ("c3", "c4", "c5")
    norm: str | None = None
    trainable_backbone_layers: int | None = None
    fpn_channels: int = 256
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_head_channels: int = 1024
    mask_head_channels: tuple[int, ...] = (256, 256, 256, 256)
    min_size: int | tuple[int, ...] = 800
    max_size: int = 1333
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 1000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_min_pos_iou: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0
    roi_sampling_ratio: int | None = None
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    bbox_reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        sizes = self.anchor_sizes
        if isinstance(sizes, tuple) and all(isinstance(size, (int, float)) for size in sizes):
            object.__setattr__(self, "anchor_sizes", tuple((size,) for size in sizes))
        _check_choices(self)
        _check_numbers(self)
        _check_sequences(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """``min_size`` as a tuple."""
        return self.min_size if isinstance(self.min_size, tuple) else (self.min_size,)


def plain(value: Any) -> Any:
    """Lists as tuples, because JSON knows no tuples, and NumPy's numbers as Python's."""
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def _check_choices(settings: Settings) -> None:
    choices: dict[str, tuple[str | None, ...]] = {
        "backbone": BACKBONES,
        "conv": (*CONVS, None),
        "norm": (*NORMS, None),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {getattr(settings, name)!r}")
    stages = settings.deform_stages
    if not isinstance(stages, tuple) or not all(stage in tuple(STAGES) for stage in stages):
        raise ValueError(f"deform_stages: expected some of {tuple(STAGES)}, got {settings.deform_stages!r}")


def _expect(settings: Settings, name: str, good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{name}: expected {what}, got {getattr(settings, name)!r}")


def _check_numbers(settings: Settings) -> None:
    expect = partial(_expect, settings)
    layers = settings.trainable_backbone_layers
    # True and 2.0 are in range(6) too.
    expect("trainable_backbone_layers", layers is None or (type(layers) is int and 0 <= layers <= 5), "0 to 5 or None")
    ratio = settings.roi_sampling_ratio
    expect("roi_sampling_ratio", ratio is None or is_count(ratio), "a positive int or None")
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.type == "bool":
            expect(field.name, isinstance(value, bool), "True or False")
        elif field.type == "int":
            expect(field.name, is_count(value), "a positive int")
        elif field.type == "float":
            expect(field.name, _is_number(value) and 0 <= value <= 1, "a number in 0..1")
    for part in ("rpn", "box"):
        low = getattr(settings, f"{part}_bg_iou_thresh")
        high = getattr(settings, f"{part}_fg_iou_thresh")
        expect(f"{part}_fg_iou_thresh", high >= low, f"at least {part}_bg_iou_thresh, which is {low}")


def _check_sequences(settings: Settings) -> None:
    expect = partial(_expect, settings)
    expect("min_size", bool(settings.sizes) and all(map(is_count, settings.sizes)), "a positive int or several")
    widths = settings.mask_head_channels
    expect(
        "mask_head_channels",
        isinstance(widths, tuple) and bool(widths) and all(map(is_count, widths)),
        "a sequence of positive ints",
    )
    for name, length in (("anchor_sizes", 5), ("image_mean", 3), ("image_std", 3), ("bbox_reg_weights", 4)):
        value = getattr(settings, name)
        expect(name, isinstance(value, tuple) and len(value) == length, f"{length} entries")
    expect("image_mean", all(map(_is_number, settings.image_mean)), "numbers")
    for name in ("image_std", "bbox_reg_weights", "aspect_ratios"):
        expect(name, _are_positive(getattr(settings, name)), "positive numbers")
    sizes = settings.anchor_sizes
    expect("anchor_sizes", all(map(_are_positive, sizes)), "positive numbers")
    expect("anchor_sizes", len({len(level) for level in sizes}) == 1, "as many sizes on every level")


def _are_positive(values: Any) -> bool:
    return isinstance(values, tuple) and bool(values) and all(_is_number(v) and v > 0 for v in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value is a positive int, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Published:
    """What mmdetection published for a model (COCO 2017 val, 12 epochs, V100 GPUs); not measured here.

    Attributes:
        box_ap: In percent.
        mask_ap: In percent, or None without masks.
        train_memory_gb: Of one GPU in training.
        fps: Images per second at test time.
        weights_url: Where the weights are; the last eight digits of the name start their SHA-256.
    """

    box_ap: float
    mask_ap: float | None
    train_memory_gb: float
    fps: float | None
    weights_url: str

    @property
    def sha256_prefix(self) -> str:
        """The first eight hexadecimal digits of the weights file's SHA-256."""
        return self.weights_url.removesuffix(".pth").rsplit("-", 1)[1]


_RELEASED = "https://download.openmmlab.com/mmdetection/v2.0"

PUBLISHED = {
    "faster_rcnn_r50_fpn_mdconv_c3-c5": Published(
        41.4, None, 4.1, 17.6,
        f"{_RELEASED}/dcn/faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco/"
        "faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco_20200130-d099253b.pth",
    ),
    "faster_rcnn_r50_fpn_mdconv_c3-c5_group4": Published(
        41.5, None, 4.2, 17.4,
        f"{_RELEASED}/dcn/faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco/"
        "faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco_20200130-01262257.pth",
    ),
    "faster_rcnn_r50_fpn_mdpool": Published(
        38.7, None, 5.8, 16.6,
        f"{_RELEASED}/dcn/faster_rcnn_r50_fpn_mdpool_1x_coco/faster_rcnn_r50_fpn_mdpool_1x_coco_20200307-c0df27ff.pth",
    ),
    "mask_rcnn_r50_fpn_mdconv_c3-c5": Published(
        41.5, 37.1, 4.5, 15.1,
        f"{_RELEASED}/dcn/mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco/"
        "mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco_20200203-ad97591f.pth",
    ),
    "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5": Published(
        42.0, 37.6, 3.1, None,
        f"{_RELEASED}/fp16/mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco/"
        "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5_1x_coco_20210520_180434-cf8fefa5.pth",
    ),
}  # fmt: skip

BACKBONES = ("r18", "r50", "r101", "x101-32x4d")

# R-18 is ours, with no published model to equal: for small objects, little data, few cores, from scratch.
_SMALL: dict[str, Any] = {
    "fpn_channels": 128,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "box_head_channels": 256,
    "mask_head_channels": (64, 64),
    "min_size": 256,
    "max_size": 512,
    "rpn_min_pos_iou": 0.0,
    "roi_sampling_ratio": 2,  # RoIAlign's backward runs on one thread: adaptive sampling took half of a training step
}

_CONV_SUFFIXES: dict[str, dict[str, Any]] = {
    "": {},
    "_dconv_c3-c5": {"conv": "dconv"},
    "_mdconv_c3-c5": {"conv": "mdconv"},
    "_mdconv_c3-c5_group4": {"conv": "mdconv", "deform_groups": 4},
}
_POOL_SUFFIXES = ("_dpool", "_mdpool", "_mdconv_c3-c5_mdpool")


def _zoo() -> dict[str, Settings]:
    models = {}
    for heads in ("faster", "mask"):
        for backbone in BACKBONES:
            small = _SMALL if backbone == "r18" else {}
            for suffix, conv in _CONV_SUFFIXES.items():
                settings = Settings(masks=heads == "mask", backbone=backbone, **small, **conv)
                models[f"{heads}_rcnn_{backbone}_fpn{suffix}"] = settings
    models["mask_rcnn_r50_fpn_fp16_mdconv_c3-c5"] = models["mask_rcnn_r50_fpn_mdconv_c3-c5"]
    return models


MODELS = _zoo()

# Names that are settled but need an operator that is not there yet.
_WITH_POOLING = {
    *(f"{h}_rcnn_{b}_fpn{suffix}" for h in ("faster", "mask") for b in BACKBONES for suffix in _POOL_SUFFIXES),
    *(f"{h}_rcnn_r50_dcnv2" for h in ("faster", "mask")),
}


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
        ValueError: If there is no model of that name (the message suggests the nearest), or a value is wrong.
        TypeError: If an override is not a setting, or the name no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected one of list_models(), got {name!r}")
    if name in _WITH_POOLING:
        raise ValueError(
            f"name: {name!r} needs deformable RoI pooling, which no detector of this version has yet; "
            "names without 'dpool', 'mdpool' and 'dcnv2' are there"
        )
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
        raise ValueError(f"name: there is no model {name!r}; did you mean {near!r}? list_models() names them all")
    known = [field.name for field in fields(Settings)]
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise TypeError(
                f"{key}: not a setting of a model; did you mean {near!r}? The settings are {', '.join(known)}"
            )
    return replace(MODELS[name], **overrides)
