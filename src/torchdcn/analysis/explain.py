"""One answer for one place in a picture: for the command, the web page, the demo, and Python."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..detector import Detector
from ..plotting.support import KINDS
from .effective_locations import EffectiveLocations, effective_sampling_locations
from .layers import kinds_of_layers
from .node import Node, check_box, forward_to_node, frozen_eval, node_at, to_model_input
from .objects import DetectedObject, DetectedObjects, encode_mask
from .receptive_field import ReceptiveField, effective_receptive_field
from .saliency import SaliencyRegion, saliency_region
from .summary import SupportSummary, is_empty, support_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

LAYER = "backbone.body.layer4"
"""The layer whose node a pixel stands for by default: the paper's c5."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Explanation:
    """What one node of a network depends on; supports that were not asked for are None.

    Attributes:
        node: The node that was asked about.
        object: The object that the network itself detects there, by the rule of :class:`DetectedObjects`.
        bound: The largest error of the region.
        sampling: The effective sampling locations.
        field: The effective receptive field.
        region: The saliency region.
        summaries: The numbers of each of these that was asked for, by "sampling", "field" and "region". ``inside``
            goes by the object's mask. None for a support that is zero everywhere.
    """

    node: Node
    object: DetectedObject | None
    bound: float
    sampling: EffectiveLocations | None
    field: ReceptiveField | None
    region: SaliencyRegion | None
    summaries: dict[str, SupportSummary | None]

    def to_json(self) -> dict[str, Any]:
        """The numbers, ready for ``json.dumps``; the keys of supports that were not asked for are left out."""
        numbers: dict[str, Any] = {
            "node": {key: value for key, value in asdict(self.node).items() if value is not None},
            "object": None if self.object is None else str(self.object),
            "object_index": None if self.object is None else self.object.index,
            "summaries": {kind: None if found is None else asdict(found) for kind, found in self.summaries.items()},
        }
        if self.sampling is not None:
            numbers["layers"] = list(self.sampling.layers)
        if self.field is not None:
            numbers |= {"centre": self.field.centre.tolist(), "response": self.field.response}
        if self.region is not None:
            region = self.region
            numbers["region"] = {
                "area": region.area,
                "error": region.error,
                "bound": self.bound,
                "curve": region.curve.tolist(),
                "fill": region.fill.tolist(),
                "mask": encode_mask(region.mask.numpy()),
                "passes": region.passes,
            }
        return numbers


def explain(
    model: nn.Module,
    picture: NDArray[np.uint8],
    at: Node | Sequence[float],
    point: Sequence[float] | None = None,
    *,
    layer: str = LAYER,
    error: float = 0.2,
    kinds: Iterable[str] = tuple(KINDS),
    regular: Iterable[str] = (),
    objects: DetectedObjects | None = None,
    on_start: Callable[[str], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Explanation:
    """Finds what a node of a detector depends on, and how much of that lies on the object that is detected there.

    Args:
        model: A detector of torchvision's convention. It is left as it was.
        picture: ``[H, W, 3]`` uint8.
        at: A node; or a pixel ``(x, y)``, for the nearest node of ``layer``; or a box ``(x1, y1, x2, y2)``.
        point: The pixel ``(x, y)`` that was clicked, where ``at`` is a position of a layer: the object there is looked
            for. By default it is the position's own place.
        layer: For a pixel: the path of the module whose output is asked about.
        error: The bound of the saliency region.
        kinds: Some of "sampling", "field" and "region".
        regular: For a model without deformable layers: the convolutions whose samples are shown; see
            :func:`layers_to_compare`.
        objects: The objects that the model detects in the picture. By default one more pass finds them.
        on_start: Called with each kind before it is computed.
        progress: For the region; see :func:`saliency_region`.

    Raises:
        ValueError: There is no such node, pixel or kind, or one of the supports can't be computed.
        CancelledError: ``progress`` returned False.

    Example:
        >>> import numpy as np
        >>> from torchdcn import models
        >>> from torchdcn.analysis import explain
        >>> model = models.create_model("faster_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, min_size=64)
        >>> found = explain(model, np.zeros((64, 80, 3), np.uint8), (40, 30), kinds=["field"])
        >>> found.node, found.region is None
        (Node(layer='backbone.body.layer4', y=1, x=1), True)
    """
    kinds = list(kinds)
    if not set(kinds) <= KINDS.keys():
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {kinds}")
    image = picture_tensor(picture)
    node = at if isinstance(at, Node) else find_node(model, picture, at, layer)
    place = node.roi or point or (_centre(model, image, node) if isinstance(at, Node) else at)
    if objects is None:
        with frozen_eval(model):
            objects = DetectedObjects.from_detections(Detector(model)(picture))
    compute: dict[str, Callable[[], EffectiveLocations | ReceptiveField | SaliencyRegion]] = {
        "sampling": lambda: effective_sampling_locations(model, image, node, regular=regular),
        "field": lambda: effective_receptive_field(model, image, node),
        "region": lambda: saliency_region(model, image, node, error, progress=progress),
    }
    found: dict[str, Any] = dict.fromkeys(KINDS)
    for kind in (kind for kind in KINDS if kind in kinds):
        if on_start is not None:
            on_start(kind)
        found[kind] = compute[kind]()
    thing = objects.object_at(place)
    pixels = None if thing is None else thing.mask()
    mask = None if pixels is None else torch.from_numpy(pixels)
    summaries = {
        kind: None if is_empty(support) else support_summary(support, mask)
        for kind, support in found.items()
        if support is not None
    }
    return Explanation(node, thing, error, **found, summaries=summaries)


def find_node(model: nn.Module, picture: NDArray[np.uint8], place: Sequence[float], layer: str = LAYER) -> Node:
    """The node of a place: of a pixel ``(x, y)`` the nearest one of ``layer``, of a box ``(x1, y1, x2, y2)`` the box.

    Raises:
        ValueError: There is no such layer, the place is not in the picture, or the model has no head for boxes.
    """
    if len(place) == 2:
        return node_at(model, picture_tensor(picture), layer, *place)
    node = Node(roi=place)  # type: ignore[arg-type]  # Node checks that there are four numbers
    if node.roi is not None:
        check_box(model, node.roi, (picture.shape[0], picture.shape[1]))
    return node


def layers_to_compare(models: Sequence[nn.Module]) -> list[list[str]]:
    """For each model the layers whose samples are shown when several stand side by side.

    Those are its deformable layers. A regular model has its convolutions of the same names as the first deformable
    model's layers, so that the two compare; the list is empty where it has not all of them.
    """
    kinds = [kinds_of_layers(model) for model in models]
    shown = [[name for name, kind in of.items() if kind == "deformable"] for of in kinds]
    first = next((names for names in shown if names), [])
    return [
        names or (first if all(of.get(name) == "regular" for name in first) else [])
        for names, of in zip(shown, kinds, strict=True)
    ]


def picture_tensor(picture: NDArray[np.uint8]) -> Tensor:
    """``[H, W, 3]`` uint8 as a detector takes it: ``[3, H, W]`` in 0..1."""
    return torch.tensor(picture).permute(2, 0, 1) / 255


def _centre(model: nn.Module, image: Tensor, node: Node) -> list[float]:
    """The pixel (x, y) of a node."""
    image = to_model_input(model, image)
    with torch.no_grad(), frozen_eval(model):
        _, mapping = forward_to_node(model, image, node)
    return [float(value) for value in mapping.centre(node, image)]
