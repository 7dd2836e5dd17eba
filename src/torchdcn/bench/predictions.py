"""Predictions of a trained detector, drawn at random: the same for every contender of a benchmark.

Random weights would give each contender other proposals and detections, and so other work to its heads. Here all layers
run, and then what the RPN and the box head predict is overwritten: every contender has as many proposals, detections
and masks as its settings let through, with the very same boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..models.rcnn import RCNN

SIDES = (1 / 50, 2 / 3)  # of objects, over the picture's short side: at 800 pixels, 16 to 533
ASPECT = 2.0  # a side is at most so many times as long as the other
TARGETS = 8  # objects of a picture in training; COCO has 7.3 on average
CANDIDATES = 3  # boxes of each detected object that reach the NMS, which keeps one
SURPLUS = 1.2  # objects beside the limit of detections, so that the limit is what decides
CLOSE, FAR = 0.05, 0.5  # standard deviations of proposals around objects, over their sides


def draw_targets(size: tuple[int, int], device: str = "cpu") -> dict[str, Any]:
    """The target of a training step: objects of many sizes, with masks that fill the picture.

    Args:
        size: Height and width of the picture.
        device: Where to put it.

    Example:
        >>> from torchdcn.bench.predictions import draw_targets
        >>> {name: tuple(value.shape) for name, value in draw_targets((64, 96)).items()}
        {'boxes': (8, 4), 'labels': (8,), 'masks': (8, 64, 96)}
    """
    masks = torch.ones(TARGETS, *size, dtype=torch.uint8, device=device)
    return {
        "boxes": _draw_objects(TARGETS, size).to(device),
        "labels": torch.arange(TARGETS, device=device),
        "masks": masks,
    }


def _draw_objects(count: int, size: tuple[int, int]) -> Tensor:  # [count, 4]
    """Boxes within the picture, their sizes spread evenly over octaves."""
    generator = torch.Generator().manual_seed(count)
    side, aspect, x, y = torch.rand(count, 4, generator=generator).unbind(1)
    side = min(size) * SIDES[0] * (SIDES[1] / SIDES[0]) ** side
    aspect = ASPECT ** (aspect - 0.5)  # the root of width over height
    sides = torch.stack([side * aspect, side / aspect], dim=1)
    corner = torch.stack([x, y], dim=1) * (torch.tensor(size[::-1]) - sides)
    return torch.cat([corner, corner + sides], dim=1)


def _draw_proposals(objects: Tensor, count: int, size: tuple[int, int]) -> Tensor:  # [count, 4]
    """Boxes around the objects, in turn: half of them close to theirs, half of them further away."""
    generator = torch.Generator().manual_seed(1)
    around = objects[torch.arange(count) % len(objects)]
    spread = torch.where(torch.arange(count) < (count + 1) // 2, CLOSE, FAR)[:, None]
    centre, sides = (around[:, :2] + around[:, 2:]) / 2, around[:, 2:] - around[:, :2]
    limit = torch.tensor(size[::-1], dtype=torch.float32)
    centre = centre + spread * sides * torch.randn(count, 2, generator=generator)
    centre = torch.minimum(centre.clamp(min=1), limit - 1)
    sides = sides * (spread * torch.randn(count, 2, generator=generator)).exp()
    return torch.cat([(centre - sides / 2).clamp(min=0), torch.minimum(centre + sides / 2, limit)], dim=1)


def fix_predictions(model: RCNN, size: tuple[int, int]) -> None:
    """Overwrites what a detector predicts from here on; gradients are those of the layers that predicted.

    Args:
        model: A detector, on the device where it runs.
        size: Height and width of the pictures, as the network sees them.

    Example:
        >>> import torch
        >>> from torchdcn.bench.predictions import fix_predictions
        >>> from torchdcn.models import create_model
        >>> model = create_model("faster_rcnn_r18_fpn", min_size=64, max_size=96).eval()
        >>> fix_predictions(model, (64, 96))
        >>> [found] = model([torch.rand(3, 64, 96)])
        >>> len(found["boxes"])
        100
    """
    settings: Any = model.settings
    device = next(model.parameters()).device
    detected = _draw_objects(int(SURPLUS * settings.box_detections_per_img), size)
    proposals = {
        True: _draw_proposals(_draw_objects(TARGETS, size), settings.rpn_post_nms_top_n_train, size).to(device),
        False: _draw_proposals(detected, settings.rpn_post_nms_top_n_test, size).to(device),
    }
    model.rpn.head.register_forward_hook(_Noise())

    def replace_proposals(rpn: Any, _: Any, output: tuple[list[Tensor], Any]) -> tuple[list[Tensor], Any]:
        return [proposals[rpn.training]] * len(output[0]), output[1]

    model.rpn.register_forward_hook(replace_proposals)
    fixed = _box_predictions(model, detected.to(device), proposals[False])

    def overwrite_boxes(head: Any, _: Any, output: tuple[Tensor, Tensor]) -> None:
        if not head.training:
            with torch.no_grad():
                for predicted, drawn in zip(output, fixed, strict=True):
                    predicted.view(-1, *drawn.shape).copy_(drawn)

    model.roi_heads.box_predictor.register_forward_hook(overwrite_boxes)


class _Noise:
    """Overwrites the RPN's objectness and deltas, so that its NMS has the same to do for every contender."""

    def __init__(self) -> None:
        self.drawn: dict[Any, Tensor] = {}

    def __call__(self, _module: Any, _inputs: Any, output: tuple[list[Tensor], list[Tensor]]) -> None:
        for predicted in [*output[0], *output[1]]:
            shape = predicted.shape[1:]
            if shape not in self.drawn:
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(shape.numel()))
                self.drawn[shape] = noise.to(predicted)
            with torch.no_grad():
                predicted.copy_(self.drawn[shape])  # in place: what comes before it keeps its gradient


def _box_predictions(model: Any, objects: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[R, 1 + C]``, background first, and deltas ``[R, 4 C]`` that find the objects in the proposals.

    The first proposals have one class, well above the threshold, the others are background.
    """
    classes, count = model.num_classes, len(proposals)
    matched = torch.arange(count, device=proposals.device) % len(objects)
    found = min(count, CANDIDATES * len(objects))
    logits = torch.zeros(count, 1 + classes, device=proposals.device)
    logits[found:, 0] = 20.0
    rows = torch.arange(found, device=proposals.device)
    logits[rows, 1 + matched[:found] % classes] = torch.linspace(12, 8, found, device=proposals.device)
    deltas = model.roi_heads.box_coder.encode([objects[matched]], [proposals])[0]
    return logits, deltas.repeat(1, classes)
