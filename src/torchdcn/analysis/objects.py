"""What a detector finds in a picture, and which of it is the object at a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..detections import Detections

SCORE = 0.3
"""An object scores more than this, unless its own box was given."""
OVERLAP = 0.5
"""The least IoU of an object with a box that was given."""
SAME_BOX = 0.01
"""Pixels by which the sides of a detection's own box may differ: files round it."""


@dataclass(frozen=True)
class DetectedObject:
    """One object that a detector found.

    Attributes:
        index: Its number among the detections, from 0.
        name: Its class.
        score: In 0..1.
        segmentation: Its mask as COCO's compressed RLE; None from a detector without masks.
    """

    index: int
    name: str
    score: float
    segmentation: dict[str, Any] | None

    def __str__(self) -> str:
        return f"{self.name} {self.score:.2f}"

    def mask(self) -> NDArray[np.bool_] | None:
        """``[H, W]``, or None from a detector without masks."""
        return None if self.segmentation is None else decode_mask(self.segmentation)


@dataclass(frozen=True, eq=False)  # an array has no single truth value to compare by
class DetectedObjects:
    """All objects that a detector found in a picture, small enough to be kept.

    One rule says which of them is the object at a place. It is the same for ``torchdcn explain``, the web page, and
    Python:

    - At a pixel it is the one that scores best, of those that score more than :data:`SCORE` and whose mask holds the
      pixel. Without masks, the box holds the pixel's centre.
    - In a box it is the one with the largest product of score and IoU with the box, of those that score more than
      :data:`SCORE` and have an IoU of at least :data:`OVERLAP`. Of two classes for nearly the same box the surer one
      wins, of two objects the one whose box it is.
    - A box that is a detection's own (to :data:`SAME_BOX` pixels) stands for this detection, whatever its score.

    Attributes:
        results: For each object its result in COCO's format, with ``label``, ``name``, and ``box`` as x1, y1, x2, y2.
        by_pixel: ``[H, W]`` int16: the number of the object at each pixel, or -1.

    Example:
        >>> import numpy as np
        >>> from torchdcn import Detections
        >>> from torchdcn.analysis import DetectedObjects
        >>> boxes = np.array([[4, 4, 20, 12], [10, 4, 30, 12]])
        >>> found = Detections(boxes, np.array([0.9, 0.8]), np.array([1, 0]), None, ("cat", "dog"), (32, 32))
        >>> objects = DetectedObjects.from_detections(found)
        >>> str(objects.object_at((12, 8))), str(objects.object_at((11, 4, 30, 12))), objects.object_at((0, 0))
        ('dog 0.90', 'cat 0.80', None)
    """

    results: list[dict[str, Any]]
    by_pixel: NDArray[np.int16]

    @classmethod
    def from_detections(cls, found: Detections) -> DetectedObjects:
        """Applies the rule for pixels to all pixels."""
        results = found.to_coco(image_id=1)
        for result, label, box in zip(results, found.labels, found.boxes, strict=True):
            del result["image_id"]
            result |= {"label": int(label), "name": found.class_names[label], "box": box.tolist()}
        by_pixel = np.full(found.image_size, -1, np.int16)
        for index in np.flatnonzero(found.scores > SCORE)[::-1]:  # the best comes last, on top of the others
            if found.masks is not None:
                by_pixel[found.masks[index]] = index
            else:
                # Boxes count from the picture's corner, half a pixel before the first pixel's centre.
                left, top, right, bottom = np.ceil(found.boxes[index] - 0.5).clip(0).astype(int)
                by_pixel[top:bottom, left:right] = index
        return cls(results, by_pixel)

    def object_at(self, place: Sequence[float]) -> DetectedObject | None:
        """The object at a pixel ``(x, y)`` or in a box ``(x1, y1, x2, y2)``; None if there is none."""
        index = self._index_in_box(np.array(place)) if len(place) == 4 else self._index_at_pixel(*place)
        if index < 0:
            return None
        result = self.results[index]
        return DetectedObject(index, result["name"], result["score"], result.get("segmentation"))

    def _index_at_pixel(self, x: float, y: float) -> int:
        height, width = self.by_pixel.shape
        return int(self.by_pixel[min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)])

    def _index_in_box(self, box: NDArray[np.float64]) -> int:
        boxes = np.array([result["box"] for result in self.results], float).reshape(-1, 4)
        scores = np.array([result["score"] for result in self.results], float)
        overlap = _iou(boxes, box)
        same = (np.abs(boxes - box) <= SAME_BOX).all(axis=1)
        fits = same | ((scores > SCORE) & (overlap >= OVERLAP))
        rank = np.where(fits, same + overlap * scores, -1)
        return int(rank.argmax()) if fits.any() else -1


def _iou(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of each of ``[D, 4]`` with one."""
    sides = (np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).clip(0)
    common = sides.prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return np.asarray(common / (areas - common))


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask ``[H, W]`` as COCO's compressed RLE."""
    from faster_coco_eval.core import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def decode_mask(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask ``[H, W]`` of COCO's compressed RLE."""
    from faster_coco_eval.core import mask as coco_mask

    return np.asarray(np.asarray(coco_mask.decode(rle)) > 0)
