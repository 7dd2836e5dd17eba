"""The questions that the page may ask, checked before anything is computed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..analysis import Node
from ..analysis.node import find_layer
from .networks import objects_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..analysis import DetectedObjects
    from .jobs import Job, Result
    from .networks import Network
    from .pictures import CachedPicture


class NodeModel(BaseModel):
    """A node: a position of a layer's output, or a box in pixels."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    layer: str | None = Field(default=None, max_length=200)
    y: int | None = Field(default=None, ge=0, le=100_000)
    x: int | None = Field(default=None, ge=0, le=100_000)
    roi: tuple[float, float, float, float] | None = None

    @model_validator(mode="after")
    def _is_a_node(self) -> NodeModel:
        self.node()
        return self

    def node(self) -> Node:
        """As the analysis takes it."""
        return Node(self.layer, self.y, self.x, self.roi)


class Question(BaseModel):
    """Something to compute about a picture.

    Attributes:
        picture: Its id.
        ask: What to compute.
        network: Which of the server's networks, from 0.
        node: For bins, field and region: the node.
        point: For field and region: the pixel (x, y) that was clicked. The support is compared with the object there;
            by default with the one at the node's own place.
        error: For region: the bound.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    picture: str = Field(max_length=64)
    ask: Literal["detections", "layers", "bins", "field", "region"]
    network: int = Field(default=0, ge=0)
    node: NodeModel | None = None
    point: tuple[float, float] | None = None
    error: float = Field(default=0.2, ge=0, le=10)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Question:
        if (self.node is None) != (self.ask in ("detections", "layers")):
            raise ValueError(f"node: {'expected' if self.node is None else 'not taken'} for {self.ask}")
        if self.ask == "bins" and self.node is not None and self.node.roi is None:
            raise ValueError("node: bins are of a roi")
        return self

    def key(self) -> str:
        """The same for the same question about the same picture."""
        return json.dumps(self.model_dump(exclude={"picture"}), sort_keys=True)

    def check(self, networks: Sequence[Network]) -> None:
        """Raises ValueError if these networks can't be asked that."""
        if self.network >= len(networks):
            raise ValueError(f"network: expected 0..{len(networks) - 1}, got {self.network}")
        if self.node is not None and self.node.layer is not None:
            find_layer(networks[self.network].model, self.node.layer)

    def compute(self, job: Job, network: Network, picture: CachedPicture) -> Result:
        """Computes the answer; runs in the thread of the jobs."""
        if self.ask == "detections":
            return network.detections(job, picture.pixels)
        if self.node is None:
            return network.layers(job, picture.pixels)
        node, objects = self.node.node(), self._objects(job, network, picture)
        if self.ask == "bins":
            return network.bins(job, picture.pixels, node, objects)
        return network.explain(job, picture.pixels, self.ask, node, self.point, objects, self.error)

    def _objects(self, job: Job, network: Network, picture: CachedPicture) -> DetectedObjects:
        """The objects that the network detects in the picture; they are cached if the page has asked for them."""
        key = Question(picture=self.picture, ask="detections", network=self.network).key()
        found = picture.cached(key)
        if found is None:
            found = network.detections(job, picture.pixels)
            picture.store(key, found)
        return objects_of(found, picture.pixels)
