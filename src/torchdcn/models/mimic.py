"""R-CNN feature mimicking (arXiv 1811.11168, section 3.3), the paper's help for training.

The box head's feature of a proposal should be the one that the same network gives for the proposal's own pixels, cut
out and enlarged, where nothing outside the box can distract it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align

from .rpn import full_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .settings import Settings

    Features = Callable[[Tensor], Tensor]  # patches [K, 3, S, S] to their 2-fc features [K, C]


class Mimicking(nn.Module):
    """The two losses of feature mimicking, and the classifier that they have to themselves.

    The network is the detector's own: this module is told how to get a patch's feature, and has no other layers.

    Args:
        settings: Its fields ``mimic_*`` and ``box_head_channels`` count.
        num_classes: Classes, without the background.
    """

    def __init__(self, settings: Settings, num_classes: int) -> None:
        super().__init__()
        self.proposals = settings.mimic_proposals
        self.patch_size = settings.mimic_patch_size
        self.weight = settings.mimic_weight
        self.reduction = settings.mimic_reduction
        self.detach = settings.mimic_detach
        self.crops_at_once = settings.mimic_crops_at_once
        self.cls_score = nn.Linear(settings.box_head_channels, num_classes + 1)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)

    def forward(
        self,
        patch_features: Features,
        images: Tensor,  # [N, 3, H, W], normalised and padded
        boxes: list[Tensor],  # [R_i, 4] of each image: the samples of the box head
        labels: list[Tensor],  # [R_i], 0 for the background
        features: Tensor,  # [sum of R_i, C]: the samples' 2-fc features
    ) -> dict[str, Tensor]:
        """``loss_mimic`` and ``loss_mimic_cls``, times their weight; 0 where no sample is positive."""
        drawn = [_draw_positives(label, self.proposals) for label in labels]
        fast = torch.cat([part[i] for part, i in zip(features.split([len(b) for b in boxes]), drawn, strict=True)])
        rcnn = fast.new_zeros(0, features.shape[1])
        if len(fast):
            crops = crop_boxes(images, [box[i] for box, i in zip(boxes, drawn, strict=True)], self.patch_size)
            rcnn = self._compute_in_parts(patch_features, crops)
        # Without any proposal it is asked all the same: each of its parameters then has a gradient on every rank.
        logits = full_precision(self.cls_score(rcnn))
        classes = torch.cat([label[i] for label, i in zip(labels, drawn, strict=True)])
        target = rcnn.detach() if self.detach else rcnn
        return {
            "loss_mimic": self.weight * mimic_loss(target, fast, len(boxes), self.reduction),
            "loss_mimic_cls": self.weight * F.cross_entropy(logits, classes, reduction="sum") / max(1, len(classes)),
        }

    def _compute_in_parts(self, patch_features: Features, crops: Tensor) -> Tensor:
        if self.crops_at_once is None:
            return patch_features(crops)
        parts = crops.split(self.crops_at_once)
        # Only the crops are kept; the backward pass computes the features of each part anew, from nothing random.
        computed: list[Tensor] = [
            checkpoint(patch_features, part, use_reentrant=False, preserve_rng_state=False) for part in parts
        ]
        return torch.cat(computed)


def mimic_loss(rcnn: Tensor, fast: Tensor, images: int, reduction: str = "sum") -> Tensor:
    """How far the box head's features are from those of the cut-out proposals: ``1 - cos``, reduced.

    Args:
        rcnn: ``[K, C]``, features of the proposals' own pixels.
        fast: ``[K, C]``, the box head's features of the same proposals.
        images: How many images they come from.
        reduction: ``"sum"``, the paper's, over an image's proposals, averaged over the images; ``"mean"`` over all
            proposals.

    Returns:
        A scalar, in float32 at least; 0 without proposals.

    Example:
        >>> import torch
        >>> from torchdcn.models.mimic import mimic_loss
        >>> mimic_loss(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [5.0, 0.0]]), images=1)
        tensor(1.)
    """
    total = (1 - F.cosine_similarity(full_precision(rcnn), full_precision(fast), dim=1)).sum()
    return total / max(1, len(fast) if reduction == "mean" else images)


def crop_boxes(
    images: Tensor,  # [N, 3, H, W]
    boxes: list[Tensor],  # [K_i, 4] of each image, in its pixels
    size: int,
) -> Tensor:  # [sum of K_i, 3, size, size]
    """The boxes' pixels, each box resized to a square.

    By RoIAlign with one bin a pixel and as many samples in a bin as it has pixels: bilinear where a box is enlarged,
    an average of bilinear samples where it shrinks (a single one would skip pixels), at fractions of pixels, of all
    images in one call. A box of ``size`` by ``size`` whole pixels gives these very pixels.

    Example:
        >>> import torch
        >>> from torchdcn.models.mimic import crop_boxes
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
        >>> crop_boxes(image, [torch.tensor([[1.0, 2.0, 3.0, 4.0]])], size=2)[0, 0]
        tensor([[ 9., 10.],
                [13., 14.]])
    """
    pixels = full_precision(images)
    crops: Tensor = roi_align(pixels, [box.to(pixels.dtype) for box in boxes], size, sampling_ratio=0, aligned=True)
    return crops.to(images.dtype)


def _draw_positives(labels: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` labels that are not the background's, at random."""
    positive = torch.where(labels > 0)[0]
    return positive[torch.randperm(len(positive), device=labels.device)[:count]]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation that trains still uses its batch's own statistics, but doesn't add them to the running ones.

    Those are for detection, which sees whole images only: enlarged crops have others.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
