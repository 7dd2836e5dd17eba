"""The front door: a picture in, its objects out."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import models
from .detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES, Detections
from .images import ImageLike, fit_size, load_image, resize
from .models.rcnn import RCNN
from .nn.layout import channels_last

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Detector:
    """A model with everything around it that turns pictures into :class:`Detections`.

    Each picture is resized as mmdet's test pipeline does it (OpenCV's bilinear on uint8, ratio kept, to fit
    ``model.settings.max_size`` and ``min_size``; of several ``min_size`` the last), and runs alone: a list gives
    what its pictures give one by one, to the last bit. A batch would be padded to a common size, which changes
    features near the borders, and it is no faster on a CPU (see ``docs/detect.md``). Boxes and masks come back
    at the picture's own size.

    Args:
        model_name_or_model: A name of :func:`torchdcn.models.list_models`, or a model that follows
            torchvision's detection convention with 0-based labels. A model given stays where it is unless
            ``device`` says otherwise; it is in eval mode after each call.
        weights: For a name: a path, ``"coco"``, or None for random weights (and a warning).
        device: By default the model's own; for a name CUDA where there is one, else the CPU.
        score_threshold: Detections must score more. For a model that was given, the model's own
            ``box_score_thresh`` applies as well.
        amp: Mixed precision, as in training: ``"bf16"``, or on CUDA ``"fp16"``, runs convolutions and matrix
            products in 16 bits (``torch.autocast``); weights, positions of samples, boxes and scores stay in
            float32. Detections change a little, and a CPU without bfloat16 instructions is slower: see
            ``docs/detect.md``.

    Attributes:
        model: The model, in eval mode.
        class_names: Of all classes: the model's, COCO's for 80 classes without names, else ``"class 0"``, ...
        category_ids: The data set's id of each class, where known.

    Raises:
        ValueError: An unknown name, weights that do not fit, no such device, a threshold outside 0..1, mixed
            precision that there is not.
        OSError: The weights file cannot be read.

    Example:
        >>> import numpy as np
        >>> from torchdcn.detector import Detector
        >>> detector = Detector("faster_rcnn_r18_fpn_mdconv_c3-c5")  # random weights, and a warning
        >>> found = detector(np.zeros((120, 160, 3), np.uint8))
        >>> found.image_size
        (120, 160)
    """

    def __init__(
        self,
        model_name_or_model: str | nn.Module,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        score_threshold: float = 0.05,
        amp: str | None = None,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold: expected a number in 0..1, got {score_threshold}")
        self.score_threshold = score_threshold
        if isinstance(model_name_or_model, nn.Module):
            if weights is not None:
                raise ValueError("weights: only for a model's name; load them into the model that you give")
            self.model = model_name_or_model
        else:
            self.model = _create(model_name_or_model, weights, score_threshold)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device is not None:
            _move(self.model, device)
        self.model.eval()
        self._amp = _amp_dtype(amp, self.device)
        self.class_names: tuple[str, ...] = _class_names(self.model)
        self.category_ids: tuple[int, ...] | None = getattr(self.model, "category_ids", None)
        if self.category_ids is None and self.class_names == COCO_CLASS_NAMES:
            self.category_ids = COCO_CATEGORY_IDS

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @overload
    def __call__(self, image: ImageLike) -> Detections: ...
    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...]) -> list[Detections]: ...

    def __call__(self, image: ImageLike | list[Any] | tuple[Any, ...]) -> Detections | list[Detections]:
        """Finds the objects in a picture, or in each of a list.

        Args:
            image: A path, a PIL image, an ``[H, W, 3]`` uint8 array (RGB), a ``[3, H, W]`` tensor, uint8 or
                floating point in 0..1; or a list or tuple of these. See :func:`torchdcn.images.load_image`.

        Returns:
            What was found, best first; a list for a list.

        Raises:
            OSError: A file is missing or is not a picture; the message names it.
            ValueError: Wrong shape, dtype or range, or more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
            TypeError: ``image`` is none of these kinds.
        """
        if isinstance(image, (list, tuple)):
            return [self._detect(one) for one in image]
        return self._detect(image)

    def _detect(self, image: ImageLike) -> Detections:
        pixels = load_image(image)
        size = (pixels.shape[0], pixels.shape[1])
        small = resize(pixels, fit_size(*size, *_sizes(self.model)))
        self.model.eval()  # training may have gone on since the last picture
        with torch.inference_mode():
            with self._autocast():
                found = _run(self.model, self._to_tensor(small), size)
            keep = found["scores"] > self.score_threshold
            if not bool(keep.all()):  # of a large picture, a copy of all masks is a gigabyte
                found = {name: value[keep] for name, value in found.items()}
        return Detections(
            boxes=_numpy(found["boxes"]),
            scores=_numpy(found["scores"]),
            labels=_numpy(found["labels"]),
            masks=_numpy(found["masks"][:, 0]) if "masks" in found else None,
            class_names=self.class_names,
            image_size=size,
            category_ids=self.category_ids,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self._amp) if self._amp else nullcontext()

    def _to_tensor(self, pixels: NDArray[np.uint8]) -> Tensor:  # [3, H, W] in 0..1
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.tensor(pixels, device=self.device).permute(2, 0, 1).to(dtype) / 255


def _create(name: str, weights: str | Path | None, score_threshold: float) -> nn.Module:
    if not isinstance(name, str):
        raise TypeError(f"model_name_or_model: expected a model's name or an nn.Module, got {type(name).__name__}")
    # Low scores dropped before NMS instead of after give the same detections for less work.
    model = models.create_model(name, weights=weights, box_score_thresh=score_threshold)
    if weights is None:
        message = f"{name} has random weights: what it finds means nothing; give weights="
        warnings.warn(message, UserWarning, stacklevel=3)
    return channels_last(model)


def _move(model: nn.Module, device: str | torch.device) -> None:
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for a device
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {str(device)!r} cannot be used here: {reason}") from error


def _amp_dtype(amp: str | None, device: torch.device) -> torch.dtype | None:
    name = amp or "none"
    if name not in AMP:
        raise ValueError(f"amp: expected one of {', '.join(AMP)}, got {amp!r}")
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"amp: fp16 needs a CUDA device, got {device}; use bf16 here")
    return AMP[name]


def _class_names(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "class_names", None)
    if names is not None:
        return tuple(names)
    count = _num_classes(model)
    return COCO_CLASS_NAMES if count == len(COCO_CLASS_NAMES) else tuple(f"class {i}" for i in range(count))


def _num_classes(model: nn.Module) -> int:
    count = getattr(model, "num_classes", None)
    if count is None:  # a detector of torchvision's parts counts the background too
        predictor: Any = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
        if predictor is None:
            raise ValueError("model_name_or_model: expected a model with class_names or num_classes")
        count = predictor.cls_score.out_features - 1
    return int(count)


def _sizes(model: nn.Module) -> tuple[int | Sequence[int], int]:
    holder = getattr(model, "settings", None) or getattr(model, "transform", None)
    return getattr(holder, "min_size", 800), getattr(holder, "max_size", 1333)


def _run(model: nn.Module, image: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes, scores, labels and bool masks ``[D, 1, H, W]`` at the original ``size`` for a resized image."""
    if isinstance(model, RCNN):
        return cast("dict[str, Tensor]", model([image], original_sizes=[size], mask_threshold=0.5)[0])
    found = dict(model([image])[0])  # any other model of torchvision's convention: its answer is resized
    height, width = image.shape[-2:]
    factors = [size[1] / width, size[0] / height] * 2
    found["boxes"] = found["boxes"] * found["boxes"].new_tensor(factors)
    if "masks" in found:
        masks = torch.zeros(len(found["masks"]), 1, *size, dtype=torch.bool, device=image.device)
        for mask, result in zip(found["masks"], masks, strict=True):  # one by one: all in float would fill the memory
            result[:] = F.interpolate(mask[None].float(), size, mode="bilinear", antialias=False)[0] >= 0.5
        found["masks"] = masks
    return found


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
