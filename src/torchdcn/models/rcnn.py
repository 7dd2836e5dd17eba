"""The detector: images become a batch, features are computed, regions proposed, each region looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import generalized_rcnn, transform

from .backbone import build_backbone
from .masks import paste_masks
from .mimic import Mimicking, frozen_statistics
from .roi_heads import build_roi_heads
from .rpn import build_rpn

if TYPE_CHECKING:
    from .settings import Settings

Target = dict[str, Tensor]


class Transform(transform.GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision ships no types
    """Resizes, normalises and batches images; brings boxes and masks back to the size that they came in.

    Sizes are rounded as mmdetection does, an image that fits already is left alone, and padding comes last.
    """

    def size_for(self, height: int, width: int, short: int | None = None) -> tuple[int, int]:
        """Height and width that an image of that size is resized to: by default, those of test time."""
        short = self.min_size[-1] if short is None else short
        scale = min(short / min(height, width), self.max_size / max(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """Resizes an image ``[3, H, W]`` and its target; of several ``min_size``, training draws one."""
        height, width = image.shape[-2:]
        short = self.torch_choice(self.min_size) if self.training and len(self.min_size) > 1 else None
        size = self.size_for(height, width, short)
        if size == (height, width):
            return image, target
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is None:
            return image, None
        target = target | {"boxes": transform.resize_boxes(target["boxes"], (height, width), size)}
        if "masks" in target:
            masks = target["masks"].to(torch.uint8)
            resized = F.interpolate(masks[:, None], size=size)[:, 0] if len(masks) else masks.new_zeros(0, *size)
            target["masks"] = resized
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
        mask_threshold: float | None = None,
    ) -> list[dict[str, Tensor]]:
        """Boxes and masks at the original sizes; masks ``[D, 1, H, W]`` of probabilities, or bool."""
        for detections, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
            detections["boxes"] = transform.resize_boxes(detections["boxes"], shape, original)
            if "masks" in detections:
                detections["masks"] = paste_masks(detections["masks"], detections["boxes"], original, mask_threshold)
        return result


class RCNN(generalized_rcnn.GeneralizedRCNN):  # type: ignore[misc]  # torchvision ships no types
    """Faster or Mask R-CNN after torchvision's convention, with 0-based labels.

    Attributes:
        name: The name it was created by.
        settings: What it is made of.
        num_classes: Classes, without the background.
        class_names: What label ``i`` is called, or None.
        category_ids: Label ``i`` in COCO-format results, or None.
        mimic: The losses of feature mimicking, or None without.

    Example:
        >>> import torch, torchdcn
        >>> model = torchdcn.models.create_model("mask_rcnn_r18_fpn_mdconv_c3-c5", num_classes=3, min_size=64)
        >>> [detections] = model.eval()([torch.rand(3, 64, 80)])
        >>> detections["masks"].shape[1:]
        torch.Size([1, 64, 80])
    """

    name: str
    class_names: tuple[str, ...] | None
    category_ids: tuple[int, ...] | None

    def __init__(self, settings: Settings, num_classes: int) -> None:
        resize = Transform(
            settings.sizes,
            settings.max_size,
            list(settings.image_mean),
            list(settings.image_std),
            size_divisible=32,
        )
        super().__init__(build_backbone(settings), build_rpn(settings), build_roi_heads(settings, num_classes), resize)
        self.settings = settings
        self.num_classes = num_classes
        self.mimic = Mimicking(settings, num_classes) if settings.mimic else None
        self.class_names = None
        self.category_ids = None

    def forward(
        self,
        images: list[Tensor],
        targets: list[Target] | None = None,
        *,
        original_sizes: list[tuple[int, int]] | None = None,
        mask_threshold: float | None = None,
    ) -> Any:
        """Losses in training, detections otherwise.

        Args:
            images: ``[3, H, W]`` each, RGB in 0..1; sizes may differ.
            targets: For training, a dict for each image: ``boxes [n, 4]`` as ``(x1, y1, x2, y2)`` in pixels,
                ``labels [n]`` int64 from 0, for Mask R-CNN ``masks [n, H, W]``, and perhaps ``iscrowd [n]``:
                crowds are left out. Images without objects are fine.
            original_sizes: Height and width before the caller resized the images as ``transform.size_for``
                says: they are not resized again, and detections come at these sizes. Not in training.
            mask_threshold: Makes masks bool, true from this probability on. Not in training.

        Returns:
            In training a dict of scalar losses ``loss_classifier``, ``loss_box_reg``, ``loss_objectness``,
            ``loss_rpn_box_reg``, for Mask R-CNN ``loss_mask``, and with mimicking ``loss_mimic`` and
            ``loss_mimic_cls``. In eval mode a dict for each image, best first: ``boxes [D, 4]`` in pixels of the
            input, ``scores [D]``, ``labels [D]`` from 0, and for Mask R-CNN ``masks [D, 1, H, W]`` of probabilities.

        Raises:
            ValueError: Images or targets that do not fit; the message names the argument.
            TypeError: A dtype that does not fit.
        """
        images = _check_images(images, self.backbone.body.conv1.weight.dtype, self.training)
        if self.training:
            if original_sizes is not None or mask_threshold is not None:
                raise ValueError("original_sizes and mask_threshold are for detecting; call model.eval() first")
            targets = _check_targets(targets, images, self.num_classes, self.settings.masks)
        else:
            targets = None
        if original_sizes is not None and len(original_sizes) != len(images):
            raise ValueError(
                f"original_sizes: expected one for each of {len(images)} images, got {len(original_sizes)}"
            )
        batch, targets = self._make_batch(images, targets, resized=original_sizes is not None)
        features = self.backbone(batch.tensors)
        proposals, proposal_losses = self.rpn(batch, features, targets)
        mimic = partial(self.mimic, self.patch_features, batch.tensors) if self.mimic is not None else None
        detections, losses = self.roi_heads(features, proposals, batch.image_sizes, targets, mimic)
        if self.training:
            return losses | proposal_losses
        sizes = original_sizes or [(image.shape[-2], image.shape[-1]) for image in images]
        return self.transform.postprocess(detections, batch.image_sizes, sizes, mask_threshold)

    def patch_features(self, patches: Tensor) -> Tensor:
        """The box head's 2-fc features ``[K, C]`` of whole patches ``[K, 3, H, W]``, normalised as images are.

        The paper's R-CNN branch: the detector's own backbone, pooling and 2 fc, with the patch as the box. The pyramid
        level is the one that pools such a box anyway: for 224 pixels that of stride 16, whose map is 14x14.
        """
        height, width = patches.shape[-2:]
        dtype = torch.promote_types(patches.dtype, torch.float32)
        whole = torch.tensor([[0, 0, width, height]], dtype=dtype, device=patches.device)
        with frozen_statistics(self.backbone):
            features = self.backbone(patches)
        count = len(patches)
        return self.roi_heads.box_features(features, [whole] * count, [(height, width)] * count)  # type: ignore[no-any-return]

    def _make_batch(self, images: list[Tensor], targets: list[Target] | None, resized: bool) -> tuple[Any, Any]:
        if not resized:
            return self.transform(images, targets)  # type: ignore[no-any-return]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        normalised = [self.transform.normalize(image) for image in images]
        return transform.ImageList(self.transform.batch_images(normalised, 32), sizes), targets


def _check_images(images: Any, dtype: torch.dtype, training: bool) -> list[Tensor]:
    checked: list[Tensor] = list(images)
    if not checked:
        raise ValueError("images: expected at least one, got none")
    for i, image in enumerate(checked):
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"images[{i}]: expected a tensor [3, H, W], got {got}")
        if not image.is_floating_point():
            raise TypeError(f"images[{i}]: expected floats in 0..1, got {image.dtype}; divide bytes by 255")
        if image.dtype != dtype and not torch.is_autocast_enabled(image.device.type):
            raise TypeError(f"images[{i}]: expected {dtype}, which the model has, got {image.dtype}")
        if training:  # a look at the values: too much for an export, and for the gradients of an analysis
            low, high = (float(value) for value in image.detach().aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"images[{i}]: expected values in 0..1, got {low:g}..{high:g}; divide bytes by 255")
    return [image.as_subclass(Tensor) for image in checked]  # not torchvision's tv_tensors from here on


def _check_targets(targets: Any, images: list[Tensor], num_classes: int, masks: bool) -> list[Target]:
    if not isinstance(targets, Sequence) or len(targets) != len(images):
        got = "none" if targets is None else len(targets) if isinstance(targets, Sequence) else type(targets).__name__
        raise ValueError(f"targets: training needs one for each of {len(images)} images, got {got}")
    return [_check_target(t, f"targets[{i}]", images[i], num_classes, masks) for i, t in enumerate(targets)]


def _check_target(given: Any, where: str, image: Tensor, num_classes: int, masks: bool) -> Target:
    target = _to_tensors(given, where, image, ["boxes", "labels", "masks"] if masks else ["boxes", "labels"])
    count = len(target["labels"])
    if tuple(target["boxes"].shape) != (count, 4):
        # An empty list of boxes has no second dimension.
        if count or target["boxes"].numel():
            raise ValueError(f"{where}: boxes: expected shape [{count}, 4], got {list(target['boxes'].shape)}")
        target["boxes"] = target["boxes"].reshape(0, 4)
    if masks and tuple(target["masks"].shape) != (count, *image.shape[-2:]) and (count or target["masks"].numel()):
        wanted = [count, *image.shape[-2:]]
        raise ValueError(f"{where}: masks: expected shape {wanted}, got {list(target['masks'].shape)}")
    labels = target["labels"]
    no_ints = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    if count and (no_ints or labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"{where}: labels: expected ints in 0..{num_classes - 1}, got {labels.tolist()}")
    target["boxes"], target["labels"] = target["boxes"].to(image.dtype), labels.long()
    if "iscrowd" in target:
        keep = ~target.pop("iscrowd").bool()
        target = {key: value[keep] for key, value in target.items()}
    boxes = target["boxes"]
    good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
    if not good.all():
        box = boxes[~good][0].tolist()
        raise ValueError(f"{where}: boxes: expected x2 > x1 and y2 > y1, all finite, got {box}")
    return target


def _to_tensors(target: Any, where: str, image: Tensor, needed: list[str]) -> Target:
    if not isinstance(target, Mapping):
        raise TypeError(f"{where}: expected a dict with {', '.join(needed)}, got {type(target).__name__}")
    if missing := [key for key in needed if key not in target]:
        raise ValueError(f"{where}: {', '.join(missing)} missing; there is {', '.join(map(str, target)) or 'nothing'}")
    tensors = {}
    for key in (*needed, "iscrowd"):
        if key in target:
            try:
                tensors[key] = torch.as_tensor(target[key], device=image.device)
            except (TypeError, ValueError, RuntimeError) as error:
                got = type(target[key]).__name__
                raise ValueError(f"{where}: {key}: expected a tensor, got a {got} that makes none: {error}") from error
    if tensors["labels"].dim() != 1:
        raise ValueError(f"{where}: labels: expected shape [n], got {list(tensors['labels'].shape)}")
    wanted = tensors["labels"].shape
    if "iscrowd" in tensors and tensors["iscrowd"].shape != wanted:
        crowds = list(tensors["iscrowd"].shape)
        raise ValueError(f"{where}: iscrowd: expected shape {list(wanted)}, got {crowds}")
    return tensors
