"""Splits the time of a detector's call into its parts, and counts what goes through them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..models.rcnn import RCNN

PARTS = ("body", "pyramid", "RPN", "box head", "mask head", "pasting")
REST = "rest"  # what is left of the whole: normalising and batching the picture, between the parts


@dataclass(frozen=True)
class Counts:
    """What goes through a detector in one call.

    Attributes:
        proposals: Boxes that the RPN gives.
        boxes: Boxes that the box head sees: all proposals, or in training those that are sampled.
        masks: Boxes that the mask head sees; 0 without one.
        detections: Boxes that are found, whose masks are pasted; 0 in training.
    """

    proposals: int = 0
    boxes: int = 0
    masks: int = 0
    detections: int = 0


class PartTimer:
    """Notes when a detector's parts begin and end, by hooks that stay on it.

    In training a part's time is that of its forward and its backward pass. For that, the maps that go from a part to
    the next pass through an identity whose backward pass reads the clock. The engine computes backward what was
    computed last, first: mask head, box head, RPN, pyramid, body.

    Args:
        model: The detector.
        wait: Called before the clock is read, to wait for what runs on a device.

    Attributes:
        seconds: Of each part, in the call that has ended last.
        counts: Of that call.

    Example:
        >>> import torch
        >>> from torchdcn.bench.parts import PartTimer
        >>> from torchdcn.models import create_model
        >>> model = create_model("faster_rcnn_r18_fpn", min_size=64, max_size=96).eval()
        >>> timer = PartTimer(model)
        >>> found = timer.detect(lambda: model([torch.rand(3, 64, 96)]))
        >>> [part for part, seconds in timer.seconds.items() if seconds]
        ['body', 'pyramid', 'RPN', 'box head']
    """

    def __init__(self, model: RCNN, wait: Callable[[], object] = lambda: None) -> None:
        self.wait = wait
        self.seconds: dict[str, float] = {}
        self.counts = Counts()
        self._masks = bool(model.roi_heads.has_mask())
        self._last = 0.0
        self._numbers: dict[str, int] = {}
        self._add_hooks(model)

    def detect(self, call: Callable[[], list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
        """Times a call of the detector in eval mode."""
        self._begin()
        found = call()
        if self._masks:
            self._end("pasting")
        self._numbers["detections"] = sum(len(one["boxes"]) for one in found)
        self.counts = Counts(**self._numbers)
        return found

    def train(self, call: Callable[[], dict[str, Tensor]]) -> None:
        """Times a call that gives losses, and the backward pass of their sum."""
        self._begin()
        total: Any = sum(call().values())
        total.backward()
        self._end("body")
        self.counts = Counts(**self._numbers)

    def _begin(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._numbers = {}
        self._restart()

    def _restart(self) -> None:
        self.wait()
        self._last = time.perf_counter()

    def _end(self, part: str) -> None:
        """Gives a part the time since the clock was read last."""
        before = self._last
        self._restart()
        self.seconds[part] += self._last - before

    def _add_hooks(self, model: RCNN) -> None:
        heads: Any = model.roi_heads
        model.backbone.body.register_forward_pre_hook(lambda *_: self._restart())
        model.backbone.body.register_forward_hook(lambda _, __, maps: self._leave("body", maps, "pyramid"))
        model.backbone.register_forward_hook(lambda *_: self._end("pyramid"))
        model.rpn.register_forward_pre_hook(lambda _, inputs: (inputs[0], self._mark(inputs[1], "RPN"), *inputs[2:]))
        model.rpn.register_forward_hook(self._leave_rpn)
        heads.box_roi_pool.register_forward_pre_hook(lambda _, inputs: self._enter("box head", "boxes", inputs))
        if self._masks:
            heads.mask_roi_pool.register_forward_pre_hook(lambda _, inputs: self._enter("mask head", "masks", inputs))
        heads.register_forward_hook(lambda *_: self._end("mask head" if self._masks else "box head"))

    def _leave(self, part: str, maps: dict[str, Tensor], following: str) -> dict[str, Tensor]:
        self._end(part)
        return self._mark(maps, following)

    def _leave_rpn(self, _module: Any, _inputs: Any, output: tuple[list[Tensor], Any]) -> None:
        self._end("RPN")
        self._numbers["proposals"] = sum(map(len, output[0]))

    def _enter(self, part: str, counted: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Where a head pools its boxes."""
        features, boxes, *rest = inputs
        if part == "mask head":
            self._end("box head")
        self._numbers[counted] = sum(map(len, boxes))
        return self._mark(features, part), boxes, *rest

    def _mark(self, maps: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        """The same maps; a part that reads them ends there in the backward pass."""
        # Those of frozen stages stay as they are: nobody needs their gradient.
        names = [name for name, one in maps.items() if one.requires_grad]
        marked = _Mark.apply(lambda: self._end(part), *(maps[name] for name in names)) if names else ()
        return maps | dict(zip(names, marked, strict=True))


class _Mark(torch.autograd.Function):
    """An identity that calls a function once all of its gradients are there."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.call()
        return None, *gradients
