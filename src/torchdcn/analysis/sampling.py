"""Where stacked deformable layers take their samples: the pictures of arXiv 1703.06211 as numbers."""

from __future__ import annotations

import difflib
import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from ..nn import DeformConv2dPack

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Node:
    """A position of a module's output.

    Attributes:
        layer: The module's path in the model, such as ``"backbone.body.layer4"``.
        y: Row of its output, from 0.
        x: Column of its output, from 0.
    """

    layer: str
    y: int
    x: int


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class SamplingLocations:
    """Where a node's last deformable layers sample, in pixels of the image; (0, 0) is the first one's centre.

    Attributes:
        points: ``[M, 2]`` as x, y; M is deform_groups x taps, multiplied over the layers: 729 for three 3x3.
        weights: ``[M]`` in 0..1: the product of the masks on the way; 0 where a sample is outside of its map.
        regular: ``[M, 2]``: where the same layers would sample without offsets.
        centre: The node itself, ``[2]`` as x, y.
        layers: The layers gone through, from the node down.
    """

    points: Tensor
    weights: Tensor
    regular: Tensor
    centre: Tensor
    layers: tuple[str, ...]


@dataclass
class _Call:
    """One use of a deformable layer in the forward pass."""

    name: str
    layer: DeformConv2dPack
    input_size: tuple[int, int]
    offset: Tensor  # [G K, 2, Ho, Wo] as dy, dx
    mask: Tensor  # [G K, Ho, Wo]


@dataclass
class _Trace:
    """What a forward pass up to the node has shown."""

    calls: list[_Call]
    node_size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (
        0,
        0,
    )  # as the network sees it: resized by the detector, without its padding
    padded_size: tuple[int, int] = (0, 0)


class _NodeReached(Exception):  # noqa: N818 - not an error: it ends a forward pass that has shown enough
    pass


def sampling_locations(model: nn.Module, image: Tensor, node: Node, depth: int = 3) -> SamplingLocations:
    """The raw sampling locations of a node, through the last deformable layers before it.

    From the node's position each of a layer's taps leads to a position of its input, which is a position of
    the layer before, and so on. A position between the pixels of a layer's output has its nearest pixel's
    offsets and mask. Index ``i`` of a map of stride ``s`` lies at pixel ``s * i`` of the image, as strided
    convolutions with odd kernels and half padding (every ResNet's) have it; strides are read off the maps'
    sizes.

    Args:
        model: A detector of torchvision's convention, called with ``[image]``; or any other module, called
            with ``image[None]``. It is run in eval mode up to the node, and left as it was.
        image: ``[3, H, W]`` as the model takes it (0..1 for a detector).
        node: The position; its module's output is a tensor ``[1, C, h, w]``.
        depth: How many deformable layers to go back; fewer where there are fewer.

    Returns:
        The locations, on the CPU, in the model's dtype.

    Raises:
        ValueError: No such layer or position, no deformable layer before it, or an image of the wrong shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.analysis import Node, sampling_locations
        >>> from torchdcn.nn import ModulatedDeformConv2dPack
        >>> net = nn.Sequential(*[ModulatedDeformConv2dPack(3, 3, 3, padding=1) for _ in range(3)])
        >>> found = sampling_locations(net, torch.rand(3, 32, 32), Node(layer="2", y=16, x=10))
        >>> found.points.shape, found.centre.tolist(), found.layers
        (torch.Size([729, 2]), [10.0, 16.0], ('2', '1', '0'))
    """
    if depth < 1:
        raise ValueError(f"depth: expected at least 1, got {depth}")
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise ValueError(f"image: expected a tensor [3, H, W], got {list(getattr(image, 'shape', []))}")
    trace = _trace(model, image, node)
    height, width = trace.node_size
    if not (0 <= node.y < height and 0 <= node.x < width):
        raise ValueError(f"node: expected y in 0..{height - 1}, x in 0..{width - 1}, got y={node.y}, x={node.x}")
    calls = trace.calls[::-1][:depth]
    if not calls:
        raise ValueError(f"node: there is no deformable layer at or before {node.layer!r}")
    like = calls[0].offset
    start = like.new_tensor([[node.y, node.x]]) * _stride(trace.padded_size, trace.node_size)
    points, weights = _walk(start, calls, trace.padded_size, deformed=True)
    regular, _ = _walk(start, calls, trace.padded_size, deformed=False)
    # The detector resizes areas, not grid points: the picture's edges stay edges.
    scale = like.new_tensor(image.shape[-2:]) / like.new_tensor(trace.image_size)
    in_pixels = [((p + 0.5) * scale - 0.5).flip(1).cpu() for p in (points, regular, start)]
    return SamplingLocations(
        in_pixels[0], weights.cpu(), in_pixels[1], in_pixels[2][0], tuple(call.name for call in calls)
    )


def _walk(
    positions: Tensor,  # [M, 2] as y, x in the network's input
    calls: list[_Call],
    size: tuple[int, int],
    *,
    deformed: bool,
) -> tuple[Tensor, Tensor]:
    """Positions and weights after the taps of each call in turn, still in the network's input."""
    weights = positions.new_ones(len(positions))
    for call in calls:
        at = positions / _stride(size, (call.offset.shape[2], call.offset.shape[3]))
        nearest_y = at[:, 0].round().long().clamp(0, call.offset.shape[2] - 1)
        nearest_x = at[:, 1].round().long().clamp(0, call.offset.shape[3] - 1)
        pair = {name: at.new_tensor(getattr(call.layer, name)) for name in ("stride", "padding", "dilation")}
        taps = _taps(call.layer).to(at) * pair["dilation"]  # [G K, 2]
        sampled = (at * pair["stride"] - pair["padding"])[:, None] + taps  # [M, G K, 2]
        if deformed:
            sampled = sampled + call.offset[:, :, nearest_y, nearest_x].permute(2, 0, 1)
        inside = ((sampled > -1) & (sampled < at.new_tensor(call.input_size))).all(-1)
        weights = (weights[:, None] * call.mask[:, nearest_y, nearest_x].T * inside).flatten()
        positions = sampled.flatten(0, 1) * _stride(size, call.input_size)
    return positions, weights


def _taps(layer: DeformConv2dPack) -> Tensor:
    """``[G K, 2]``: row and column of each tap in the kernel, for every deformable group."""
    rows, columns = (torch.arange(side) for side in layer.kernel_size)
    return torch.cartesian_prod(rows, columns).repeat(layer.deform_groups, 1)


def _stride(image_size: tuple[int, int], map_size: tuple[int, int]) -> int:
    """Pixels a step, from the longer sides; where rounding a size up hides it, the nearest power of two."""
    long = 0 if image_size[0] >= image_size[1] else 1
    ratio = image_size[long] / map_size[long]
    return int(ratio) if ratio == int(ratio) else 2 ** max(0, round(math.log2(ratio)))


def _trace(model: nn.Module, image: Tensor, node: Node) -> _Trace:
    modules = dict(model.named_modules())
    if node.layer not in modules:
        near = difflib.get_close_matches(node.layer, modules, n=1, cutoff=0)
        raise ValueError(f"node: the model has no layer {node.layer!r}; did you mean {near[0]!r}?")
    trace = _Trace([], image_size=(image.shape[1], image.shape[2]), padded_size=(image.shape[1], image.shape[2]))

    def on_transform(_: nn.Module, __: Any, output: Any) -> None:
        images = output[0]
        trace.image_size, trace.padded_size = tuple(images.image_sizes[0]), tuple(images.tensors.shape[-2:])

    def on_node(_: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(f"node: {node.layer!r} does not give one map [N, C, H, W]; name a layer that does")
        trace.node_size = (output.shape[2], output.shape[3])
        raise _NodeReached

    hooks = []
    for name, module in modules.items():
        if isinstance(module, DeformConv2dPack):
            hooks.append(module.register_forward_pre_hook(_recorder(trace, name)))
    detector = isinstance(model, GeneralizedRCNN)
    if detector:
        hooks.append(modules["transform"].register_forward_hook(on_transform))
    hooks.append(modules[node.layer].register_forward_hook(on_node))
    try:
        with _evaluating(model), torch.no_grad():
            like = next(model.parameters(), image)
            image = image.to(device=like.device, dtype=like.dtype)
            model([image] if detector else image[None])
    except _NodeReached:
        return trace
    finally:
        for hook in hooks:
            hook.remove()
    raise ValueError(f"node: the model does not use its layer {node.layer!r} for this image")


def _recorder(trace: _Trace, name: str) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, DeformConv2dPack)  # noqa: S101 - for the type checker: hooked on nothing else
        offset, mask = module.predict(inputs[0])
        offset = offset[0].reshape(-1, 2, *offset.shape[2:])
        mask = torch.ones_like(offset[:, 0]) if mask is None else mask[0]
        size = (inputs[0].shape[2], inputs[0].shape[3])
        trace.calls.append(_Call(name, module, size, offset.clone(), mask.clone()))

    return record


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
