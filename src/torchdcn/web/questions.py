"""What the page may ask, checked before anything is computed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..analysis import Node
from ..analysis.node import find_layer
from .networks import mask_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .jobs import Answer, Job
    from .networks import Network
    from .pictures import Held


class Place(BaseModel):
    """A node: a position of a layer's output, or a box in pixels."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    layer: str | None = Field(default=None, max_length=200)
    y: int | None = Field(default=None, ge=0, le=100_000)
    x: int | None = Field(default=None, ge=0, le=100_000)
    roi: tuple[float, float, float, float] | None = None

    @model_validator(mode="after")
    def _is_a_node(self) -> Place:
        self.node()
        return self

    def node(self) -> Node:
        """As the analysis has it."""
        return Node(self.layer, self.y, self.x, self.roi)


class Question(BaseModel):
    """Something to compute about a picture.

    Attributes:
        picture: Its id.
        ask: What.
        network: Which of the server's networks, from 0.
        node: For bins, field and region: of what.
        object: For field and region: the number of the detection whose mask the support is compared with.
        error: For region: the bound.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    picture: str = Field(max_length=64)
    ask: Literal["detections", "layers", "bins", "field", "region"]
    network: int = Field(default=0, ge=0)
    node: Place | None = None
    object: int | None = Field(default=None, ge=0)
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

    def answer(self, job: Job, network: Network, held: Held) -> Answer:
        """Computes it; in the thread of the jobs."""
        picture = held.pixels
        if self.node is None:
            found = network.detections if self.ask == "detections" else network.layers
            return found(job, picture)
        node = self.node.node()
        if self.ask == "bins":
            return network.bins(job, picture, node)
        mask = self._object_mask(held)
        if self.ask == "field":
            return network.field(job, picture, node, mask)
        return network.region(job, picture, node, mask, self.error)

    def _object_mask(self, held: Held) -> Tensor | None:
        if self.object is None:
            return None
        asked = held.found(Question(picture=self.picture, ask="detections", network=self.network).key())
        found: list[dict[str, Any]] = asked.facts["detections"] if asked is not None else []
        if self.object >= len(found):
            raise ValueError(f"object: expected a detection's number, of {len(found)}, got {self.object}")
        rle = found[self.object].get("segmentation")
        return None if rle is None else mask_of(rle)
