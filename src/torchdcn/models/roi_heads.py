"""Heads on regions: torchvision's, with mmdetection's pooling, matching, losses and post-processing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import faster_rcnn, mask_rcnn, roi_heads
from torchvision.ops import batched_nms, clip_boxes_to_image

from ._torchvision_private import replace_attribute
from .masks import crop_masks
from .pooling import Sizes, build_pool
from .rpn import BoxCoder, Matcher, full_precision, split_by_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from .settings import Settings

    # The sampled boxes [R_i, 4] and labels [R_i] of each image, 0 for the background, and the boxes' 2-fc features
    # [sum of R_i, C], to further losses.
    MoreLosses = Callable[[list[Tensor], list[Tensor], Tensor], dict[str, Tensor]]


class BoxPredictor(nn.Module):
    """Class scores with the background first, and deltas for each class but the background.

    Args:
        in_channels: Width of the box head.
        num_classes: Classes, without the background.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, in_channels]`` to scores ``[R, 1 + num_classes]`` and deltas ``[R, num_classes * 4]``."""
        return full_precision(self.cls_score(x)), full_precision(self.bbox_pred(x))


class RoIHeads(roi_heads.RoIHeads):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's heads; the labels that come in and go out are 0-based.

    Inside, in ``select_training_samples``, torchvision counts classes from 1 and calls the background 0.
    """

    def __init__(self, *args: Any, min_pos_iou: float | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        replace_attribute(self, "box_coder", BoxCoder(self.box_coder.weights))
        replace_attribute(self, "proposal_matcher", Matcher.like(self.proposal_matcher, min_pos_iou))

    def box_features(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: Sizes) -> Tensor:
        """The 2-fc features ``[sum of K_i, C]`` of boxes ``[K_i, 4]``, in pixels of the resized images."""
        pooled: Tensor = self.box_head(self.box_roi_pool(features, boxes, shapes))
        return pooled

    def mask_logits(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: Sizes) -> Tensor:
        """Mask logits ``[sum of K_i, num_classes, 28, 28]`` of boxes ``[K_i, 4]``."""
        pooled = self.mask_roi_pool(features, boxes, shapes)
        return full_precision(self.mask_predictor(self.mask_head(pooled)))

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],  # [R, 4] for each image
        image_shapes: Sizes,
        targets: list[dict[str, Tensor]] | None = None,
        more_losses: MoreLosses | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in pixels of the resized images, with 28x28 masks; in training, losses."""
        if self.training:
            return [], self.losses(features, proposals, image_shapes, targets or [], more_losses)
        scores, deltas = self.box_predictor(self.box_features(features, proposals, image_shapes))
        boxes, scores, labels = self.postprocess_detections(scores, deltas, proposals, image_shapes)
        result = [{"boxes": b, "labels": n, "scores": s} for b, n, s in zip(boxes, labels, scores, strict=True)]
        if self.has_mask():
            logits = self.mask_logits(features, boxes, image_shapes)
            chosen = _select_class(logits, torch.cat(labels))[:, None].sigmoid()
            for detections, masks in zip(result, torch.split(chosen, [len(b) for b in boxes]), strict=True):
                detections["masks"] = masks
        return result, {}

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: list[dict[str, Tensor]],
        more_losses: MoreLosses | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy and L1 of the deltas, averaged over the samples, and the masks' cross-entropy."""
        one_based = [target | {"labels": target["labels"] + 1} for target in targets]
        boxes, matched, labels, deltas = self.select_training_samples(proposals, one_based)
        sampled = self.box_features(features, boxes, image_shapes)
        logits, predicted = self.box_predictor(sampled)
        classes = torch.cat(labels)
        count = max(1, len(classes))
        positive = torch.where(classes > 0)[0]
        predicted = split_by_class(predicted)[positive, classes[positive] - 1]
        losses = {
            "loss_classifier": F.cross_entropy(logits, classes, reduction="sum") / count,
            "loss_box_reg": F.l1_loss(predicted, torch.cat(deltas)[positive], reduction="sum") / count,
        }
        if self.has_mask():
            chosen = [torch.where(label > 0)[0] for label in labels]
            losses["loss_mask"] = self._mask_loss(
                features,
                [box[i] for box, i in zip(boxes, chosen, strict=True)],
                [index[i] for index, i in zip(matched, chosen, strict=True)],
                torch.cat([label[i] for label, i in zip(labels, chosen, strict=True)]) - 1,
                [target["masks"] for target in targets],
                image_shapes,
            )
        if more_losses is not None:
            losses |= more_losses(boxes, labels, sampled)
        return losses

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],  # positives only
        matched: list[Tensor],
        labels: Tensor,
        masks: list[Tensor],
        image_shapes: Sizes,
    ) -> Tensor:
        logits = _select_class(self.mask_logits(features, boxes, image_shapes), labels)
        wanted = [
            crop_masks(m, b, i, logits.shape[-1]) if len(b) else logits.new_zeros(0, *logits.shape[1:])
            for m, b, i in zip(masks, boxes, matched, strict=True)
        ]
        total = F.binary_cross_entropy_with_logits(logits, torch.cat(wanted).to(logits), reduction="sum")
        return total / max(1, logits.numel())

    def postprocess_detections(
        self,
        class_logits: Tensor,  # [R, 1 + C], background first
        box_regression: Tensor,  # [R, 4 C]
        proposals: list[Tensor],
        image_shapes: Sizes,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes ``[D, 4]``, scores ``[D]``, labels ``[D]`` of each image after NMS by class, best first."""
        counts = [len(boxes) for boxes in proposals]
        decoded = split_by_class(self.box_coder.decode_single(box_regression, torch.cat(proposals)))
        probabilities = class_logits.softmax(dim=1)[:, 1:]
        result: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for boxes, scores, shape in zip(
            torch.split(decoded, counts), torch.split(probabilities, counts), image_shapes, strict=True
        ):
            row, labels = torch.where(scores > self.score_thresh)
            boxes, scores = clip_boxes_to_image(boxes[row, labels], shape), scores[row, labels]
            solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            boxes, scores, labels = boxes[solid], scores[solid], labels[solid]
            keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            for collected, tensor in zip(result, (boxes, scores, labels), strict=True):
                collected.append(tensor[keep])
        return result


def _select_class(logits: Tensor, labels: Tensor) -> Tensor:  # [D, C, h, w], [D] -> [D, h, w]
    return logits[torch.arange(len(logits), device=logits.device), labels]


def build_roi_heads(settings: Settings, num_classes: int) -> RoIHeads:
    """The box head, and the mask head if there is one, that settings describe, randomly initialised."""
    channels = settings.fpn_channels
    box_head = faster_rcnn.TwoMLPHead(channels * 7 * 7, settings.box_head_channels)
    for layer in (box_head.fc6, box_head.fc7):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    masks: dict[str, nn.Module] = {}
    if settings.masks:
        widths = settings.mask_head_channels
        masks = {
            "mask_roi_pool": build_pool(settings, 14, settings.pool if settings.pool_masks else None),
            "mask_head": mask_rcnn.MaskRCNNHeads(channels, list(widths), dilation=1),
            "mask_predictor": mask_rcnn.MaskRCNNPredictor(widths[-1], widths[-1], num_classes),
        }
        # torchvision's scale follows the number of classes: with few, the first losses are huge.
        logits = masks["mask_predictor"].get_submodule("mask_fcn_logits")
        nn.init.normal_(logits.weight, std=0.001)  # type: ignore[arg-type]  # a convolution's
        nn.init.zeros_(logits.bias)  # type: ignore[arg-type]
    return RoIHeads(
        build_pool(settings, 7, settings.pool),
        box_head,
        BoxPredictor(settings.box_head_channels, num_classes),
        settings.box_fg_iou_thresh,
        settings.box_bg_iou_thresh,
        settings.box_batch_size_per_image,
        settings.box_positive_fraction,
        settings.bbox_reg_weights,
        settings.box_score_thresh,
        settings.box_nms_thresh,
        settings.box_detections_per_img,
        min_pos_iou=settings.box_fg_iou_thresh if settings.masks else None,
        **masks,
    )
