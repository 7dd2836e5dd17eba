"""What happens to an image and its target between reader and model, and how a batch is put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchvision.transforms import v2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def train_transforms(*, horizontal_flip: float = 0.5, extra: Sequence[v2.Transform] = ()) -> v2.Transform:
    """Augmentation for training: a horizontal flip, then float values in 0..1 and only usable boxes.

    All randomness comes from torch's generator, so ``torch.manual_seed`` repeats it. Resizing is the model's
    part.

    Args:
        horizontal_flip: The probability of a flip.
        extra: More ``torchvision.transforms.v2``, which see the flipped uint8 image with its boxes and masks.

    Raises:
        ValueError: ``horizontal_flip`` is not in 0..1.

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from torchdcn.data import train_transforms
        >>> box = tv_tensors.BoundingBoxes([[0.0, 1, 2, 3]], format="XYXY", canvas_size=(8, 8))
        >>> image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
        >>> target = {"boxes": box, "labels": torch.tensor([0])}
        >>> image, target = train_transforms(horizontal_flip=1.0)(image, target)
        >>> image.dtype, target["boxes"].tolist()
        (torch.float32, [[6.0, 1.0, 8.0, 3.0]])
    """
    if not 0 <= horizontal_flip <= 1:
        raise ValueError(f"horizontal_flip: expected a probability in 0..1, got {horizontal_flip}")
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(horizontal_flip),
            *extra,
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(labels_getter=_per_object),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
        ]
    )


def eval_transforms() -> v2.Transform:
    """Float values in 0..1 and plain tensors; no object is left out.

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from torchdcn.data import eval_transforms
        >>> image, _ = eval_transforms()(tv_tensors.Image(torch.full((3, 8, 8), 255, dtype=torch.uint8)), {})
        >>> image.max()
        tensor(1.)
    """
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])


def _per_object(item: tuple[Any, dict[str, Any]]) -> list[Tensor]:
    """What must lose the same rows as the boxes; the masks go with them by themselves."""
    target = item[1]
    return [target[key] for key in ("labels", "area", "iscrowd") if key in target]


def collate(batch: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """A batch as detectors take it: a list of images of any size, and the list of their targets.

    Example:
        >>> import torch
        >>> from torchdcn.data import collate
        >>> images, targets = collate([(torch.zeros(3, 4, 4), {}), (torch.zeros(3, 5, 6), {})])
        >>> [tuple(image.shape) for image in images]
        [(3, 4, 4), (3, 5, 6)]
    """
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
