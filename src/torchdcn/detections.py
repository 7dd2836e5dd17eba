"""What a detector finds in one picture: the project's one result type, and its ways out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import supervision
    from numpy.typing import NDArray

    from .images import ImageLike

# COCO's 80 classes in the order of their category ids: what an 80-class model without names detects.
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,"
    "skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,"
    "sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,"
    "dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_CLASS_NAMES: tuple[str, ...] = tuple(_COCO_NAMES.split(","))
_COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORY_IDS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in _COCO_UNUSED_IDS)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Detections:
    """The objects found in one picture, best first as the detector gives them; NumPy arrays.

    Tensors are accepted too and become arrays.

    Attributes:
        boxes: ``[D, 4]`` float32, x1, y1, x2, y2 in pixels of the picture.
        scores: ``[D]`` float32 in 0..1.
        labels: ``[D]`` int64, index of the class.
        masks: ``[D, H, W]`` bool at the picture's size, or None from a detector without masks.
        class_names: Names of all classes; ``class_names[labels[i]]`` is what object i is.
        image_size: ``(H, W)`` of the picture.
        category_ids: The data set's id of each class, where known; what :meth:`to_coco` writes.

    Raises:
        ValueError: Shapes, sizes or labels do not fit each other.

    Example:
        >>> import numpy as np
        >>> from torchdcn.detections import Detections
        >>> found = Detections(
        ...     boxes=np.array([[4.0, 4.0, 20.0, 12.0]]),
        ...     scores=np.array([0.9]),
        ...     labels=np.array([1]),
        ...     masks=None,
        ...     class_names=("cat", "dog"),
        ...     image_size=(32, 32),
        ... )
        >>> len(found), found.class_names[found.labels[0]]
        (1, 'dog')
        >>> found.to_coco(image_id=7)[0]["bbox"]
        [4.0, 4.0, 16.0, 8.0]
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    category_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        height, width = (int(side) for side in self.image_size)
        convert = {
            "boxes": _array(self.boxes, np.float32),
            "scores": _array(self.scores, np.float32),
            "labels": _array(self.labels, np.int64),
            "masks": None if self.masks is None else _array(self.masks, np.bool_),
            "class_names": tuple(self.class_names),
            "image_size": (height, width),
            "category_ids": None if self.category_ids is None else tuple(int(i) for i in self.category_ids),
        }
        for name, value in convert.items():
            object.__setattr__(self, name, value)  # frozen for others, not while it is being built
        self._check()

    def _check(self) -> None:
        if self.scores.ndim != 1:
            raise ValueError(f"scores: expected shape [D], got {list(self.scores.shape)}")
        count = len(self.scores)
        expected: dict[str, tuple[int, ...]] = {"boxes": (count, 4), "labels": (count,)}
        if self.masks is not None:
            expected["masks"] = (count, *self.image_size)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name}: expected shape {list(shape)}, for {count} scores and image_size"
                    f" {self.image_size}, got {list(getattr(self, name).shape)}"
                )
        if count and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise ValueError(
                f"labels: expected 0..{len(self.class_names) - 1} for {len(self.class_names)} class_names,"
                f" got {self.labels.min()}..{self.labels.max()}"
            )
        if self.category_ids is not None and len(self.category_ids) != len(self.class_names):
            raise ValueError(
                f"category_ids: expected one for each of {len(self.class_names)} class_names,"
                f" got {len(self.category_ids)}"
            )

    def __len__(self) -> int:
        """The number of objects."""
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """The objects whose score is greater than ``score``."""
        keep = self.scores > score
        return Detections(
            self.boxes[keep],
            self.scores[keep],
            self.labels[keep],
            None if self.masks is None else self.masks[keep],
            self.class_names,
            self.image_size,
            self.category_ids,
        )

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO-format results: what ``json.dump`` and :func:`torchdcn.evaluation.evaluate_coco` take.

        Args:
            image_id: The picture's id in the data set.
            category_ids: The data set's id of each class; by default the detector's own, else the labels.

        Returns:
            One dict an object: ``image_id``, ``category_id``, ``bbox`` as x, y, width, height, ``score`` and,
            with masks, ``segmentation`` as compressed RLE.

        Raises:
            ValueError: ``category_ids`` are too few.
        """
        ids = self.category_ids if category_ids is None else tuple(category_ids)
        if ids is None:
            ids = tuple(range(len(self.class_names)))
        if len(self) and self.labels.max() >= len(ids):
            raise ValueError(f"category_ids: expected one for each of {len(self.class_names)} classes, got {len(ids)}")
        corners = self.boxes.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": int(ids[label]), "bbox": [*corner, *size], "score": score}
            for label, corner, size, score in zip(
                self.labels, corners[:, :2].tolist(), sizes.tolist(), self.scores.tolist(), strict=True
            )
        ]
        if self.masks is not None:
            for result, mask in zip(results, self.masks, strict=True):
                result["segmentation"] = _rle(mask)
        return results

    def to_supervision(self) -> supervision.Detections:
        """The same as ``supervision.Detections``, with class names in ``data["class_name"]``.

        Raises:
            ImportError: The extra ``supervision`` is not installed.
        """
        try:
            from supervision import Detections as SupervisionDetections
        except ImportError as error:
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
        return SupervisionDetections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array([self.class_names[label] for label in self.labels], dtype=str)},
        )

    def draw(self, image: ImageLike, score_threshold: float = 0.0, scale: int | None = 1) -> NDArray[np.uint8]:
        """The picture with masks, boxes, class names and scores on it.

        Args:
            image: The picture that was searched, in any form that a detector takes.
            score_threshold: Objects at or below it are left out.
            scale: Whole factor to enlarge the picture by; None enlarges small ones until names can be read.

        Returns:
            ``[H * scale, W * scale, 3]`` uint8 RGB.

        Raises:
            ValueError: The picture's size is not ``image_size``.
        """
        from .images import load_image
        from .plotting import draw_detections

        pixels = load_image(image)
        if pixels.shape[:2] != self.image_size:
            raise ValueError(
                f"image: expected the picture of these detections, (H, W) = {self.image_size}, got {pixels.shape[:2]}"
            )
        shown = self.above(score_threshold)
        return draw_detections(
            pixels, shown.boxes, shown.scores, shown.labels, shown.masks, shown.class_names, scale=scale
        )


def _array(value: Any, dtype: type) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    return np.asarray(value, dtype=dtype)


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    from faster_coco_eval.core import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
