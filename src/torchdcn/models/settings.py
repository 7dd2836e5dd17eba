"""A detector's settings: all that can be chosen, and what may be chosen."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

BACKBONES = ("r18", "r50", "r101", "x101-32x4d")
NORMS = ("bn", "bn_eval", "frozen_bn", "gn")
CONVS = ("dconv", "mdconv")
POOLS = ("dpool", "mdpool")
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
        fpn: With a feature pyramid. Without one, as in the DCNv2 paper, conv5 is dilated so that its stride stays
            16, proposals come from conv4, and boxes are pooled from conv5. Not for R-18.
        pool: What replaces RoIAlign: ``"dpool"``, ``"mdpool"`` or None. One pack for each pyramid level.
        pool_masks: Also for the mask head. (In the paper both are replaced; mmdetection replaces that of the boxes.)
        pool_channels: Width of the packs' hidden layers.
        pool_single_trunk: mdpool predicts offsets and mask by the same layers, as in the paper; mmcv has two branches.
        norm: ``"bn"`` trains batch normalisation; ``"bn_eval"`` keeps its statistics, ``"frozen_bn"`` also
            its weights; ``"gn"`` is GroupNorm with 32 groups. None chooses ``"bn_eval"`` for pretrained
            weights, and from scratch ``"gn"`` for R-18 and ``"bn"`` otherwise.
        trainable_backbone_layers: 0 to 5, counted from the last stage. None: 3 for pretrained weights, or 5.
        fpn_channels: Channels of the feature pyramid; without one, those that conv5 is reduced to.
        anchor_sizes: Sides of the anchors in pixels, for each of the five pyramid levels; without a pyramid, those of
            the one level.
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
        mimic: Train with R-CNN feature mimicking, see ``docs/mimicking.md``. Not saved with weights.
        mimic_proposals: The most positive proposals of an image that are cropped.
        mimic_patch_size: Side that a crop is resized to, in pixels.
        mimic_weight: Factor of both losses.
        mimic_reduction: ``"sum"`` of the cosine losses over an image's proposals, or their ``"mean"``.
        mimic_detach: Hold the crops' features still in the cosine loss, so that only the box head follows.
        mimic_crops_at_once: Crops computed together, and once more in the backward pass, which saves memory.
            None: all, once.

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
    fpn: bool = True
    pool: str | None = None
    pool_masks: bool = False
    pool_channels: int = 1024
    pool_single_trunk: bool = False
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
    mimic: bool = False
    mimic_proposals: int = 32
    mimic_patch_size: int = 224
    mimic_weight: float = 0.1
    mimic_reduction: str = "sum"
    mimic_detach: bool = False
    mimic_crops_at_once: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, to_python(getattr(self, field.name)))
        sizes = self.anchor_sizes
        if isinstance(sizes, tuple) and all(isinstance(size, (int, float)) for size in sizes):
            object.__setattr__(self, "anchor_sizes", tuple((size,) for size in sizes) if self.fpn else (sizes,))
        _check_choices(self)
        _check_numbers(self)
        _check_sequences(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """``min_size`` as a tuple."""
        return self.min_size if isinstance(self.min_size, tuple) else (self.min_size,)


def to_python(value: Any) -> Any:
    """Makes a setting out of what JSON or NumPy has: lists become tuples, and NumPy's numbers Python's."""
    if isinstance(value, (list, tuple)):
        return tuple(to_python(item) for item in value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def _check_choices(settings: Settings) -> None:
    choices: dict[str, tuple[str | None, ...]] = {
        "backbone": BACKBONES,
        "conv": (*CONVS, None),
        "pool": (*POOLS, None),
        "norm": (*NORMS, None),
        "mimic_reduction": ("sum", "mean"),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {getattr(settings, name)!r}")
    if settings.backbone == "r18" and not settings.fpn:
        raise ValueError("fpn: expected True for r18, whose blocks can't be dilated, got False")
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
    for name in ("roi_sampling_ratio", "mimic_crops_at_once"):
        value = getattr(settings, name)
        expect(name, value is None or is_count(value), "a positive int or None")
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
    levels = 5 if settings.fpn else 1
    for name, length in (("anchor_sizes", levels), ("image_mean", 3), ("image_std", 3), ("bbox_reg_weights", 4)):
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
