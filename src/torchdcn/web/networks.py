"""The networks behind the page, and the questions that it can ask them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import DetectedObjects, Node, explain, layers_to_compare, sampling_locations
from ..analysis.explain import picture_tensor
from ..detector import Detector
from ..nn import DeformConv2d
from ..plotting.support import heat_map
from .jobs import Result
from .layers import layer_samples, stage_convolutions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from ..models.rcnn import RCNN
    from .jobs import Job

SCORE = 0.05


@dataclass(eq=False)
class Network:
    """A detector that is asked about pictures.

    Attributes:
        model: In eval mode.
        weights: The name of the weights, or None for random ones.
        shown: The layers whose samples are shown.
    """

    model: RCNN
    weights: str | None
    shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.detector = Detector(self.model, score_threshold=SCORE)

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.model.name,
            "weights": self.weights,
            "classes": self.detector.class_names,
            "deformable": sum(isinstance(module, DeformConv2d) for module in self.model.modules()),
        }

    def detections(self, job: Job, picture: NDArray[np.uint8]) -> Result:
        """All that it detects, as COCO's results; the bytes are the number of the object at each pixel, int16."""
        with _stoppable(self.model, job):
            found = DetectedObjects.from_detections(self.detector(picture))
        return Result({"detections": found.results}, found.by_pixel.astype("<i2").tobytes())

    def layers(self, job: Job, picture: NDArray[np.uint8]) -> Result:
        """Where the layers sample; see :func:`~torchdcn.web.layers.layer_samples`."""
        with _stoppable(self.model, job):
            return layer_samples(self.model, picture, self.shown)

    def bins(self, job: Job, picture: NDArray[np.uint8], node: Node, objects: DetectedObjects) -> Result:
        """The pooling bins of a box: their centres, their places without offsets, and their modulation."""
        with _stoppable(self.model, job):
            found = sampling_locations(self.model, picture_tensor(picture), node)
        detected = objects.object_at(node.roi or ())
        return Result(
            {
                "points": found.points.tolist(),
                "weights": found.weights.tolist(),
                "regular": found.regular.tolist(),
                "layers": found.layers,
                "object_index": None if detected is None else detected.index,
            }
        )

    def explain(
        self,
        job: Job,
        picture: NDArray[np.uint8],
        kind: str,
        node: Node,
        point: Sequence[float] | None,
        objects: DetectedObjects,
        error: float,
    ) -> Result:
        """One of the explanation's supports, in the words of ``explain.json``.

        The bytes of a "field" are the heat of each pixel, ``[H, W]`` uint8.
        """
        with _stoppable(self.model, job):
            found = explain(
                self.model, picture, node, point, error=error, kinds=[kind], objects=objects, progress=job.progress
            )
        heat = None if found.field is None else heat_bytes(found.field.map.numpy())
        return Result(found.to_json(), heat)


def objects_of(detections: Result, picture: NDArray[np.uint8]) -> DetectedObjects:
    """Rebuilds the objects that :meth:`Network.detections` found in a picture."""
    by_pixel = np.frombuffer(detections.data or b"", "<i2").reshape(picture.shape[:2])
    return DetectedObjects(detections.facts["detections"], by_pixel)


def choose_layers(networks: Sequence[Network]) -> None:
    """Sets which layers each network shows beside the others."""
    for network, names in zip(networks, layers_to_compare([n.model for n in networks]), strict=True):
        network.shown = names or stage_convolutions(network.model)


def heat_bytes(field: NDArray[np.floating[Any]]) -> bytes:
    """The heat map of a receptive field in steps of 1/255, ``[H, W]`` uint8."""
    return np.rint(255 * heat_map(field)).astype(np.uint8).tobytes()


@contextmanager
def _stoppable(model: torch.nn.Module, job: Job) -> Iterator[None]:
    """Lets a stopped job end between two layers instead of after a whole pass."""
    hooks = [module.register_forward_pre_hook(lambda *_: job.check()) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
