"""The networks behind the page, and the questions that it can ask them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from ..analysis import (
    Node,
    effective_receptive_field,
    saliency_region,
    sampling_locations,
    support_summary,
)
from ..detector import Detector
from ..nn import DeformConv2d
from ..plotting.support import HEAT_BLUR
from .jobs import Answer
from .layers import layers_to_show, pixels_of, sampled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ..detections import Detections
    from ..models.rcnn import RCNN
    from .jobs import Job

SCORE = 0.05


@dataclass(eq=False)
class Network:
    """A detector that is asked about pictures.

    Attributes:
        model: In eval mode.
        weights: What the weights are called, or None for random ones.
        shown: The layers whose samples are shown.
    """

    model: RCNN
    weights: str | None
    shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.detector = Detector(self.model, score_threshold=SCORE)

    def facts(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.model.name,
            "weights": self.weights,
            "classes": self.detector.class_names,
            "deformable": sum(isinstance(module, DeformConv2d) for module in self.model.modules()),
        }

    def detections(self, job: Job, picture: NDArray[np.uint8]) -> Answer:
        """What it finds, as COCO's results with the class's name and the box's corners."""
        with _stoppable(self.model, job):
            found = self.detector(picture)
        return Answer({"detections": results_of(found)})

    def layers(self, job: Job, picture: NDArray[np.uint8]) -> Answer:
        """Where the layers sample; see :func:`~torchdcn.web.layers.sampled`."""
        with _stoppable(self.model, job):
            return sampled(self.model, picture, self.shown)

    def bins(self, job: Job, picture: NDArray[np.uint8], node: Node) -> Answer:
        """The pooling bins of a box: their centres, their places without offsets, and their modulation."""
        with _stoppable(self.model, job):
            found = sampling_locations(self.model, pixels_of(picture), node)
        return Answer(
            {
                "points": found.points.tolist(),
                "weights": found.weights.tolist(),
                "regular": found.regular.tolist(),
                "layers": found.layers,
            }
        )

    def field(self, job: Job, picture: NDArray[np.uint8], node: Node, mask: Tensor | None) -> Answer:
        """The effective receptive field; its bytes are the heat of each pixel, ``[H, W]`` uint8."""
        with _stoppable(self.model, job):
            found = effective_receptive_field(self.model, pixels_of(picture), node)
        facts = {"response": found.response, "centre": found.centre.tolist(), "summary": _summary(found, mask)}
        return Answer(facts, heat_of(found.map.numpy()).tobytes())

    def region(self, job: Job, picture: NDArray[np.uint8], node: Node, mask: Tensor | None, error: float) -> Answer:
        """The saliency region within a bound."""
        with _stoppable(self.model, job):
            found = saliency_region(self.model, pixels_of(picture), node, error, progress=job.progress)
        return Answer(
            {
                "region": rle_of(found.mask.numpy()),
                "area": found.area,
                "error": found.error,
                "bound": error,
                "fill": found.fill.tolist(),
                "curve": found.curve.tolist(),
                "passes": found.passes,
                "summary": _summary(found, mask),
            }
        )


def choose_layers(networks: Sequence[Network]) -> None:
    """Settles which layers each network shows, beside the others."""
    for network, names in zip(networks, layers_to_show([n.model for n in networks]), strict=True):
        network.shown = names


def results_of(found: Detections) -> list[dict[str, Any]]:
    """COCO results with two things more that the page needs."""
    results = found.to_coco(image_id=1)
    for result, label, box in zip(results, found.labels, found.boxes, strict=True):
        del result["image_id"]
        result |= {"label": int(label), "name": found.class_names[label], "box": box.tolist()}
    return results


def rle_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask ``[H, W]`` as COCO's compressed RLE."""
    from faster_coco_eval.core import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def mask_of(rle: dict[str, Any]) -> Tensor:
    """The way back, ``[H, W]`` bool."""
    from faster_coco_eval.core import mask as coco_mask

    return torch.from_numpy(np.asarray(coco_mask.decode(rle)) > 0)


def heat_of(field: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A receptive field as the project's figures show it: averaged over neighbours, then its square root; 255 is most.

    Example:
        >>> import numpy as np
        >>> from torchdcn.web.networks import heat_of
        >>> heat_of(np.eye(64)).max()
        255
    """
    heat = cv2.GaussianBlur(np.asarray(field, float), (0, 0), max(field.shape) / HEAT_BLUR)
    return np.asarray(np.rint(255 * np.sqrt(heat / max(float(heat.max()), 1e-300))), np.uint8)


def _summary(support: Any, mask: Tensor | None) -> dict[str, Any] | None:
    try:
        return asdict(support_summary(support, mask))
    except ValueError:  # a node that depends on nothing: there is a picture of that, but no numbers
        return None


@contextmanager
def _stoppable(model: torch.nn.Module, job: Job) -> Iterator[None]:
    """Lets a stopped job end between two layers instead of after a whole pass."""
    hooks = [module.register_forward_pre_hook(lambda *_: job.check()) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
