"""Region proposals: torchvision's network with mmdetection's anchors, matching and losses."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import anchor_utils, rpn

from . import _torchvision_private as private
from .backbone import stage_widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torchvision.models.detection.image_list import ImageList

    from .settings import Settings

STRIDES = (4, 8, 16, 32, 64)
"""Of the pyramid's five levels, in pixels."""

_CONV4_HEAD = 512
"""Width of the head on conv4, which has 1024 channels: Faster R-CNN's."""


def full_precision(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 as float32: boxes of hundreds of pixels need more digits than those have."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def split_by_class(deltas: Tensor) -> Tensor:
    """``[R, 4 C]`` as ``[R, C, 4]``, also without any rows."""
    return deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)


class AnchorGenerator(anchor_utils.AnchorGenerator):  # type: ignore[misc]  # torchvision ships no types
    """Anchors that are not rounded, on a grid of known strides.

    torchvision rounds them to whole pixels and derives the stride from the shapes, which is off on the
    coarsest level (a map of 25 rows halves to 13).

    Args:
        sizes: Sides of the anchors on each level.
        aspect_ratios: Height by width of each level's.
        strides: Of the levels, in pixels.
    """

    def __init__(self, sizes: Any, aspect_ratios: Any, strides: tuple[int, ...] = STRIDES) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides = strides

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:  # [A, 4]
        """Anchors around (0, 0), ratio by ratio."""
        ratios = torch.tensor(aspect_ratios, dtype=torch.float64, device=device).sqrt()[:, None]
        sizes = torch.tensor(scales, dtype=torch.float64, device=device)[None]
        widths, heights = (sizes / ratios).flatten(), (sizes * ratios).flatten()
        return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).to(dtype)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of all levels, ``[sum of H W A, 4]``, once for each image; flattened y, x, anchor."""
        like = full_precision(feature_maps[0].new_empty(0))
        levels = []
        for cell, feature, stride in zip(self.cell_anchors, feature_maps, self.strides, strict=True):
            height, width = feature.shape[-2:]
            y = torch.arange(height, dtype=like.dtype, device=like.device)[:, None, None] * stride
            x = torch.arange(width, dtype=like.dtype, device=like.device)[None, :, None] * stride
            x1, y1, x2, y2 = cell.to(like).unbind(1)
            shape = (height, width, len(cell))
            edges = [edge.expand(shape) for edge in (x + x1, y + y1, x + x2, y + y2)]
            levels.append(torch.stack(edges, dim=-1).reshape(-1, 4))
        return [torch.cat(levels)] * len(image_list.image_sizes)


class BoxCoder(private.BoxCoder):  # type: ignore[misc]  # torchvision ships no types
    """Box deltas whose sizes are clamped on both sides, to a factor of 1000 / 16 either way."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Deltas ``[R, 4 C]`` around boxes ``[R, 4]`` to boxes ``[R, 4 C]``."""
        deltas = split_by_class(rel_codes) / rel_codes.new_tensor(self.weights)
        sizes = (boxes[:, 2:] - boxes[:, :2])[:, None]
        centres = (boxes[:, 2:] + boxes[:, :2])[:, None] / 2 + deltas[..., :2] * sizes
        half = sizes * deltas[..., 2:].clamp(-self.bbox_xform_clip, self.bbox_xform_clip).exp() / 2
        return torch.cat([centres - half, centres + half], dim=-1).flatten(1)


class Matcher(private.Matcher):  # type: ignore[misc]  # torchvision ships no types
    """Assigns each box the object that it overlaps most, if that is enough.

    From an IoU of ``min_quality`` on, an object also gets the boxes that overlap it most; None never.
    """

    def __init__(self, high: float, low: float, min_quality: float | None) -> None:
        super().__init__(high, low, allow_low_quality_matches=min_quality is not None)
        self.min_quality = min_quality or 0.0

    @classmethod
    def like(cls, matcher: private.Matcher, min_quality: float | None) -> Matcher:
        """One with the thresholds of torchvision's."""
        return cls(matcher.high_threshold, matcher.low_threshold, min_quality)

    def set_low_quality_matches_(
        self,
        matches: Tensor,
        all_matches: Tensor,  # noqa: ARG002  # torchvision's signature
        match_quality_matrix: Tensor,
    ) -> None:
        """Changes ``matches [R]`` by IoUs ``[objects, R]``; of two with one best box, the later has it."""
        best = match_quality_matrix.max(dim=1, keepdim=True).values
        # A best IoU of 0 is no match at all: it would claim every box that is far from the object.
        is_best = (match_quality_matrix == best) & (best >= self.min_quality) & (best > 0)
        objects, boxes = torch.where(is_best)
        owner = torch.full_like(matches, -1).scatter_reduce_(0, boxes, objects, "amax")
        matches.copy_(torch.where(owner >= 0, owner, matches))


class RPNHead(rpn.RPNHead):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's head, with results in full precision under autocast.

    Args:
        in_channels: Of the maps.
        anchors: At each position.
        channels: Of the 3x3 convolution's output; by default as many as its input has.
    """

    def __init__(self, in_channels: int, anchors: int, channels: int | None = None) -> None:
        super().__init__(channels or in_channels, anchors)
        if channels is not None:
            self.conv[0][0] = nn.Conv2d(in_channels, channels, 3, padding=1)
            nn.init.normal_(self.conv[0][0].weight, std=0.01)
            nn.init.zeros_(self.conv[0][0].bias)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level ``[N, C, H, W]``, objectness ``[N, A, H, W]`` and deltas ``[N, 4 A, H, W]``."""
        logits, deltas = super().forward(x)
        return [full_precision(t) for t in logits], [full_precision(t) for t in deltas]


class RegionProposalNetwork(rpn.RegionProposalNetwork):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's network with mmdetection's losses: L1, and both averaged over the sampled anchors."""

    def __init__(self, *args: Any, min_pos_iou: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        private.replace_attribute(self, "box_coder", BoxCoder((1.0, 1.0, 1.0, 1.0)))
        private.replace_attribute(self, "proposal_matcher", Matcher.like(self.proposal_matcher, min_pos_iou))
        private.replace_attribute(self, "min_size", torch.finfo(torch.float32).tiny)  # drops only boxes without area

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals ``[R, 4]`` of each image, and in training two losses; from as many maps as have anchors."""
        maps = dict(islice(features.items(), len(self.anchor_generator.strides)))
        result: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, maps, targets)
        return result

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of the sampled anchors, and L1 of the positive ones' deltas."""
        positive, negative = (torch.cat(chosen).bool() for chosen in self.fg_bg_sampler(labels))
        sampled = positive | negative
        count = max(1, int(sampled.sum()))
        wanted = torch.cat(labels)[sampled].to(objectness.dtype)
        loss_objectness = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], wanted, reduction="sum")
        targets = torch.cat(regression_targets)[positive]
        loss_box = F.l1_loss(pred_bbox_deltas[positive], targets, reduction="sum")
        return loss_objectness / count, loss_box / count


def build_rpn(settings: Settings) -> RegionProposalNetwork:
    """The proposal network that settings describe, randomly initialised."""
    ratios = (settings.aspect_ratios,) * len(settings.anchor_sizes)
    anchors = AnchorGenerator(settings.anchor_sizes, ratios, STRIDES if settings.fpn else (16,))
    count = anchors.num_anchors_per_location()[0]
    if settings.fpn:
        head = RPNHead(settings.fpn_channels, count)
    else:
        head = RPNHead(stage_widths(settings)[2], count, _CONV4_HEAD)
    return RegionProposalNetwork(
        anchors,
        head,
        settings.rpn_fg_iou_thresh,
        settings.rpn_bg_iou_thresh,
        settings.rpn_batch_size_per_image,
        settings.rpn_positive_fraction,
        {"training": settings.rpn_pre_nms_top_n_train, "testing": settings.rpn_pre_nms_top_n_test},
        {"training": settings.rpn_post_nms_top_n_train, "testing": settings.rpn_post_nms_top_n_test},
        settings.rpn_nms_thresh,
        settings.rpn_score_thresh,
        min_pos_iou=settings.rpn_min_pos_iou,
    )
