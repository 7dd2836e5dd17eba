"""Masks of objects: what the mask head learns from, and what it predicts put back into the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def crop_masks(
    masks: Tensor,  # [n, H, W]
    boxes: Tensor,  # [P, 4] in pixels of the masks
    matched: Tensor,  # [P]: which mask each box crops
    size: int,
) -> Tensor:  # [P, size, size], 0 or 1
    """Crops masks to boxes at the mask head's resolution; a cell counts from half coverage on."""
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    crops: Tensor = roi_align(masks[:, None].to(boxes), rois, (size, size), 1.0, aligned=True)
    return (crops[:, 0] >= 0.5).to(boxes.dtype)


def paste_masks(
    masks: Tensor,  # [D, 1, h, w] in 0..1
    boxes: Tensor,  # [D, 4] in pixels of the image
    size: tuple[int, int],  # (H, W) of the image
    threshold: float | None = None,
) -> Tensor:  # [D, 1, H, W]
    """Resamples masks from their boxes to the image bilinearly; outside of its box a mask fades to 0.

    The result carries no gradient.

    Args:
        masks: Probabilities ``[D, 1, h, w]``.
        boxes: ``[D, 4]`` as ``(x1, y1, x2, y2)`` in pixels.
        size: Height and width of the image.
        threshold: If given, the result is bool (a quarter of the memory): true from this probability on.

    Returns:
        ``[D, 1, H, W]`` in the dtype of ``masks``, or bool.

    Example:
        >>> import torch
        >>> from torchdcn.models.masks import paste_masks
        >>> paste_masks(torch.ones(1, 1, 28, 28), torch.tensor([[2.0, 2.0, 6.0, 4.0]]), (8, 8)).sum().item()
        8.0
    """
    height, width = size
    dtype = masks.dtype if threshold is None else torch.bool
    result = torch.zeros((len(masks), 1, height, width), dtype=dtype, device=masks.device)
    for i, (mask, box) in enumerate(zip(masks.detach(), boxes.detach(), strict=True)):
        x1, y1, x2, y2 = box.tolist()
        if not (x2 > x1 and y2 > y1):
            continue
        # Only the box and a pixel around it are sampled, as mmcv does on a CPU: further out all is below 0.5.
        left, right = max(0, int(x1) - 1), min(width, int(x2) + 2)
        top, bottom = max(0, int(y1) - 1), min(height, int(y2) + 2)
        if left >= right or top >= bottom:
            continue
        x = (torch.arange(left, right, device=box.device) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(top, bottom, device=box.device) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)[None].to(mask.dtype)
        sampled = F.grid_sample(mask[None], grid, align_corners=False)[0]
        result[i, :, top:bottom, left:right] = sampled if threshold is None else sampled >= threshold
    return result
