"""How many floating-point operations a detector takes for a picture, by torch's own counter."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models import create_model
from ..ops._torch_private import FakeTensorMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..models.pooling import MultiScaleRoIPool

PARTS = ("backbone", "proposals", "boxes", "masks")


def detection_flops(name: str, size: tuple[int, int] = (800, 1344), **overrides: Any) -> dict[str, int]:
    """Counts what detecting in one picture takes, with tensors that have shapes and no values: nothing is computed.

    As ``torch.utils.flop_counter`` counts: convolutions, matrix products, and of the deformable operators the samples
    too (:mod:`torchdcn.ops.flop_counting`); a multiplication and an addition are two. There are as many proposals and
    detections as the model's settings let through, spread over the levels alike, and where their bins have as many
    samples as pixels, 2 x 2 of them.

    Args:
        name: One of :func:`torchdcn.models.list_models`.
        size: Height and width of the picture as the network sees it, multiples of 32.
        **overrides: See :func:`torchdcn.models.create_model`.

    Returns:
        FLOPs of ``"backbone"`` (with its pyramid), ``"proposals"``, ``"boxes"`` and ``"masks"`` (0 without).

    Raises:
        ValueError: There is no such model, or a size that doesn't fit.
        RuntimeError: The C++ kernels are missing, without which RoI pooling would not count.

    Example:
        >>> from torchdcn.bench.flops import detection_flops
        >>> plain = detection_flops("faster_rcnn_r18_fpn", (256, 448))
        >>> deformable = detection_flops("faster_rcnn_r18_fpn_mdconv_c3-c5", (256, 448))
        >>> {part: round((deformable[part] - plain[part]) / 1e9, 2) for part in plain}
        {'backbone': 0.45, 'proposals': 0.0, 'boxes': 0.0, 'masks': 0.0}
    """
    from ..ops import available_backends

    if reason := available_backends()["cpp"]:
        raise RuntimeError(f"counting needs the C++ kernels: {reason}")
    if min(size) < 32 or size[0] % 32 or size[1] % 32:
        raise ValueError(f"size: expected multiples of 32, got {size[0]} x {size[1]}")
    with FakeTensorMode(), torch.no_grad():
        return dict(zip(PARTS, _counted(create_model(name, **overrides).eval(), size), strict=True))


def _counted(model: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    settings, heads = model.settings, model.roi_heads
    backbone, maps = _count(lambda: model.backbone(torch.empty(1, 3, *size)))
    levels = list(islice(maps.values(), len(model.rpn.anchor_generator.strides)))
    proposals, _ = _count(lambda: model.rpn.head(levels))
    boxes, _ = _count(lambda: _of_boxes(heads, list(maps.values()), settings.rpn_post_nms_top_n_test))
    masks = 0
    if heads.has_mask():
        masks, _ = _count(lambda: _of_masks(heads, list(maps.values()), settings.box_detections_per_img))
    return backbone, proposals, boxes, masks


def _of_boxes(heads: Any, maps: list[Tensor], count: int) -> None:
    heads.box_predictor(heads.box_head(_pooled(heads.box_roi_pool, maps, count)))


def _of_masks(heads: Any, maps: list[Tensor], count: int) -> None:
    heads.mask_predictor(heads.mask_head(_pooled(heads.mask_roi_pool, maps, count)))


def _pooled(pool: MultiScaleRoIPool, maps: list[Tensor], count: int) -> Tensor:
    """Features of boxes spread over the levels alike: which one a box belongs to can't be asked without values."""
    layers: list[nn.Module] = list(pool.layers)
    shares = [len(range(level, count, len(layers))) for level in range(len(layers))]
    pooled = [
        layer(features, torch.empty(share, 5))
        for layer, features, share in zip(layers, maps[pool.first :], shares, strict=False)
    ]
    return torch.cat(pooled)


def _count(call: Callable[[], Any]) -> tuple[int, Any]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result
