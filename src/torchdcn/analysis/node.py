"""The node of a network that is asked about, and running the network up to it."""

from __future__ import annotations

import difflib
import math
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

if TYPE_CHECKING:
    from collections.abc import Iterator

Box = tuple[float, float, float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class Node:
    """A position of a module's output, or a box as a detector's head sees it.

    Attributes:
        layer: The module's path in the model, such as ``"backbone.body.layer4"``. It gives one map ``[1, C, h, w]``;
            of a module that is used several times, the first use counts.
        y: Row of its output, from 0.
        x: Column of its output, from 0.
        roi: Instead of these: a box ``(x1, y1, x2, y2)`` in pixels of the image, as detections have it (the image's
            left upper corner is (0, 0), half a pixel before the first pixel's centre). The node is what the detector's
            two fully connected layers make of that box, 1024 numbers in the published models.

    Raises:
        ValueError: Neither or both kinds, or numbers that are no position or box.

    Example:
        >>> from torchdcn.analysis import Node
        >>> Node("backbone.body.layer4", y=3, x=5)
        Node(layer='backbone.body.layer4', y=3, x=5)
        >>> Node(roi=(10, 20, 110, 90))
        Node(roi=(10.0, 20.0, 110.0, 90.0))
    """

    layer: str | None = None
    y: int | None = None
    x: int | None = None
    roi: Box | None = None

    def __post_init__(self) -> None:
        if self.roi is not None:
            if (self.layer, self.y, self.x) != (None, None, None):
                raise ValueError(f"node: expected layer, y and x, or roi alone, got both: {self}")
            object.__setattr__(self, "roi", _checked_box(self.roi))
        elif not isinstance(self.layer, str) or not all(isinstance(n, Integral) for n in (self.y, self.x)):
            raise ValueError(
                f"node: expected a layer's name with ints y and x, or roi=(x1, y1, x2, y2), got layer={self.layer!r}, "
                f"y={self.y!r}, x={self.x!r}"
            )

    def __repr__(self) -> str:
        if self.layer is None:
            return f"Node(roi={self.roi})"
        return f"Node(layer={self.layer!r}, y={self.y}, x={self.x})"


def _checked_box(roi: Any) -> Box:
    try:
        x1, y1, x2, y2 = (float(n) for n in roi)
    except (TypeError, ValueError):
        raise ValueError(f"node: expected roi=(x1, y1, x2, y2), got {roi!r}") from None
    if not (x2 > x1 and y2 > y1 and all(map(math.isfinite, (x1, y1, x2, y2)))):
        raise ValueError(f"node: expected roi with x2 > x1 and y2 > y1, all finite, got {roi!r}")
    return x1, y1, x2, y2


@dataclass(frozen=True)
class ImageMapping:
    """How positions in a network's input lie in the image that it was given. Sizes are (height, width).

    Attributes:
        image: The image's own.
        resized: As the detector resizes it; the same for other networks.
        padded: With the detector's padding: what the first layer sees.
        node: Of the node's map; of one cell for a box.
    """

    image: Size
    resized: Size
    padded: Size
    node: Size = (1, 1)

    def scale(self, like: Tensor) -> Tensor:
        """Pixels of the image for each of the network's input, ``[2]`` as y, x."""
        return like.new_tensor(self.image) / like.new_tensor(self.resized)

    def pixels(self, positions: Tensor) -> Tensor:
        """``[..., 2]`` as y, x in the network's input to x, y in the image."""
        # The detector resizes areas, not grid points: the picture's edges stay edges.
        return ((positions + 0.5) * self.scale(positions) - 0.5).flip(-1)

    def stride(self, size: Size) -> int:
        """Pixels of the input a step of a map, from the longer sides; a power of two where rounding hides it."""
        long = 0 if self.padded[0] >= self.padded[1] else 1
        ratio = self.padded[long] / size[long]
        return int(ratio) if ratio == int(ratio) else 2 ** max(0, round(math.log2(ratio)))

    def centre(self, node: Node, like: Tensor) -> Tensor:
        """The node's own place in the image, ``[2]`` as x, y."""
        if node.roi is not None:
            x1, y1, x2, y2 = node.roi
            return like.new_tensor([(x1 + x2) / 2 - 0.5, (y1 + y2) / 2 - 0.5])
        return self.pixels(like.new_tensor([node.y, node.x]) * self.stride(self.node))


class _NodeReached(Exception):  # noqa: N818 - not an error: it ends a forward pass at the node
    pass


def to_model_input(model: nn.Module, image: Tensor) -> Tensor:
    """Checks an image and moves it to the model's device and dtype; it stays differentiable.

    Raises:
        ValueError: The image is not ``[C, H, W]``, for detectors ``[3, H, W]``.
        TypeError: The image has no floating-point numbers.
    """
    channels = "3" if isinstance(model, GeneralizedRCNN) else "C"
    good = isinstance(image, Tensor) and image.ndim == 3 and 0 not in image.shape
    if not good or (channels == "3" and image.shape[0] != 3):
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"image: expected a tensor [{channels}, H, W], got {got}")
    if not image.is_floating_point():
        raise TypeError(f"image: expected floats as the model takes them, got {image.dtype}; divide bytes by 255")
    like = next((p for p in model.parameters() if p.is_floating_point()), image)
    return image.to(device=like.device, dtype=like.dtype)


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Sets eval mode and turns off gradients of parameters; afterwards each module and parameter is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


def forward_to_node(model: nn.Module, image: Tensor, node: Node) -> tuple[Tensor, ImageMapping]:
    """Runs a model, which is under :func:`frozen_eval`, up to a node.

    Returns:
        The node's feature vector ``[C]``, and how the maps lie in the image.

    Raises:
        ValueError: There is no such node, or the model does not use it.
    """
    if node.roi is not None:
        return _forward_to_box(model, image, node.roi)
    layer = find_layer(model, node.layer or "")
    size = (image.shape[1], image.shape[2])
    sizes: dict[str, Size] = {"resized": size, "padded": size}
    found: list[Tensor] = []

    def on_transform(_: nn.Module, __: Any, output: Any) -> None:
        sizes["resized"] = tuple(output[0].image_sizes[0])
        sizes["padded"] = tuple(output[0].tensors.shape[-2:])

    def on_node(_: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != 1:
            raise ValueError(f"node: {node.layer!r} does not give one map [1, C, h, w]; name a layer that does")
        found.append(output)
        raise _NodeReached

    hooks = [layer.register_forward_hook(on_node)]
    try:
        if isinstance(model, GeneralizedRCNN):
            hooks.append(model.transform.register_forward_hook(on_transform))
            model([image])
        else:
            model(image.clone()[None])  # a copy, because the first layer may change it in place
    except _NodeReached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(f"node: the model does not use its layer {node.layer!r} for this image")
    height, width = found[0].shape[2:]
    if not (0 <= _int(node.y) < height and 0 <= _int(node.x) < width):
        raise ValueError(f"node: expected y in 0..{height - 1}, x in 0..{width - 1}, got y={node.y}, x={node.x}")
    return found[0][0, :, _int(node.y), _int(node.x)], ImageMapping(size, **sizes, node=(height, width))


def _int(value: int | None) -> int:
    return int(value or 0)


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module of that path.

    Raises:
        ValueError: There is none; a name that is near is given.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        parts = ", ".join(child for child, _ in model.named_children()) or "none"
        hint = f"did you mean {near[0]!r}?" if near else f"its parts are {parts}"
        raise ValueError(f"node: the model has no layer {name!r}; {hint}")
    return modules[name]


def check_box(model: nn.Module, roi: Box, size: Size) -> Any:
    """Checks that a model has a head for boxes, and that a box overlaps an image of ``size``; the model, as a detector.

    Raises:
        ValueError: It has none, or the box is outside.
    """
    heads: Any = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or not hasattr(heads, "box_head"):
        raise ValueError("node: a roi needs a detector with roi_heads; give layer, y and x for other networks")
    height, width = size
    if not (roi[0] < width and roi[1] < height and roi[2] > 0 and roi[3] > 0):
        raise ValueError(f"node: roi {roi} is outside of the image of {width} x {height} pixels")
    return model


def _forward_to_box(model: nn.Module, image: Tensor, roi: Box) -> tuple[Tensor, ImageMapping]:
    height, width = image.shape[1:]
    detector = check_box(model, roi, (height, width))
    batch, _ = detector.transform([image])
    resized = tuple(batch.image_sizes[0])
    factors = image.new_tensor([resized[1] / width, resized[0] / height]).repeat(2)
    boxes = [image.new_tensor([roi]) * factors]
    features = detector.backbone(batch.tensors)
    features = {"0": features} if isinstance(features, Tensor) else features
    heads = detector.roi_heads
    if hasattr(heads, "box_features"):
        vector = heads.box_features(features, boxes, batch.image_sizes)[0]
    else:  # torchvision's own detectors
        vector = heads.box_head(heads.box_roi_pool(features, boxes, batch.image_sizes))[0]
    return vector.flatten(), ImageMapping((height, width), resized, tuple(batch.tensors.shape[-2:]))


@torch.no_grad()
def node_at(model: nn.Module, image: Tensor, layer: str, x: float, y: float) -> Node:
    """The position of a layer's output that is nearest to a pixel.

    Args:
        model: As for :func:`response`.
        image: ``[3, H, W]`` as the model takes it.
        layer: The module's path.
        x: Column in the image, from 0; may lie between pixels.
        y: Row in the image.

    Raises:
        ValueError: There is no such layer or pixel.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.analysis import node_at
        >>> node_at(nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1)), torch.rand(3, 64, 64), "0", x=21, y=40)
        Node(layer='0', y=10, x=5)
    """
    image = to_model_input(model, image)
    height, width = image.shape[1:]
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        raise ValueError(f"x, y: expected a pixel of the image of {width} x {height}, got {x:g}, {y:g}")
    with frozen_eval(model):
        _, mapping = forward_to_node(model, image, Node(layer, 0, 0))
    stride = mapping.stride(mapping.node)
    scale = mapping.scale(torch.zeros(1, dtype=torch.float64)).tolist()
    row, column = (((p + 0.5) / s - 0.5) / stride for p, s in zip((y, x), scale, strict=True))
    last_row, last_column = mapping.node[0] - 1, mapping.node[1] - 1
    return Node(layer, y=min(max(round(row), 0), last_row), x=min(max(round(column), 0), last_column))
