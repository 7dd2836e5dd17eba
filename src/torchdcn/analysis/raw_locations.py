"""Where stacked deformable layers take their samples: the pictures of arXiv 1703.06211 as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .layers import BinCall, ConvCall, Recorder, kinds_of_layers
from .node import forward_to_node, frozen_eval, to_model_input

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .node import ImageMapping, Node


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class SamplingLocations:
    """Where a node's last deformable layers, or its pooling bins, sample, in pixels of the image.

    (0, 0) is the first pixel's centre.

    Attributes:
        points: ``[M, 2]`` as x, y; M is deform_groups x taps, multiplied over the layers: 729 for three 3x3.
        weights: ``[M]`` in 0..1: the product of the masks on the way; 0 where a sample is outside of its map.
        regular: ``[M, 2]``: where the same layers would sample without offsets.
        centre: The node itself, ``[2]`` as x, y.
        layers: The layers gone through, from the node down.
        image_size: (H, W).
    """

    points: Tensor
    weights: Tensor
    regular: Tensor
    centre: Tensor
    layers: tuple[str, ...]
    image_size: tuple[int, int]


def sampling_locations(model: nn.Module, image: Tensor, node: Node, depth: int = 3) -> SamplingLocations:
    """The raw sampling locations of a node, through the last deformable layers before it; of a box, its bins.

    From the node's position each of a layer's taps leads to a position of its input, which is a position of
    the layer before, and so on. A position between the pixels of a layer's output has its nearest pixel's
    offsets and mask. Index ``i`` of a map of stride ``s`` lies at pixel ``s * i`` of the image, as strided
    convolutions with odd kernels and half padding (every ResNet's) have it; strides are read off the maps'
    sizes.

    Args:
        model: A detector of torchvision's convention, called with ``[image]``; or any other module, called
            with ``image[None]``. It is run in eval mode up to the node, and left as it was.
        image: ``[3, H, W]`` as the model takes it (0..1 for a detector).
        node: The position; its module's output is a tensor ``[1, C, h, w]``. Or a box: its pooling bins' centres
            then, 49 of a 7x7 pooling, weighed by their modulation.
        depth: How many deformable layers to go back; fewer where there are fewer. Of no meaning for a box.

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
    kinds = kinds_of_layers(model)
    wanted = "deformable" if node.roi is None else "bins"
    recorder = Recorder({name for name, kind in kinds.items() if kind == wanted})
    with torch.no_grad():
        pixels = to_model_input(model, image)
        with frozen_eval(model), recorder.watching(model):
            features, mapping = forward_to_node(model, pixels, node)
    bins = [call for call in recorder.calls if isinstance(call, BinCall)]
    calls = [call for call in recorder.calls[::-1] if isinstance(call, ConvCall)][:depth]
    if node.roi is not None and bins:
        return _bin_locations(bins[-1], node, mapping)
    if not calls:
        missing = "deformable layer at or before" if node.roi is None else "RoI pooling layer of ours or RoIAlign for"
        raise ValueError(f"node: there is no {missing} {node.layer or node!r}")
    start = features.new_tensor([[_int(node.y), _int(node.x)]]) * mapping.stride(mapping.node)
    points, weights = _follow_taps(start, calls, mapping, deformed=True)
    regular, _ = _follow_taps(start, calls, mapping, deformed=False)
    return SamplingLocations(
        points=mapping.pixels(points).cpu(),
        weights=weights.cpu(),
        regular=mapping.pixels(regular).cpu(),
        centre=mapping.pixels(start)[0].cpu(),
        layers=tuple(call.name for call in calls),
        image_size=mapping.image,
    )


def _int(value: int | None) -> int:
    return int(value or 0)


def _bin_locations(call: BinCall, node: Node, mapping: ImageMapping) -> SamplingLocations:
    points, regular = call.points(mapping)[0], call.grid(mapping)[0]
    return SamplingLocations(
        points=points.reshape(-1, 2).cpu(),
        weights=call.weights()[0].reshape(-1).cpu(),
        regular=regular.reshape(-1, 2).cpu(),
        centre=mapping.centre(node, points).cpu(),
        layers=(call.name,),
        image_size=mapping.image,
    )


def _follow_taps(
    positions: Tensor,  # [M, 2] as y, x in the network's input
    calls: list[ConvCall],
    mapping: ImageMapping,
    *,
    deformed: bool,
) -> tuple[Tensor, Tensor]:
    """Positions and weights after the taps of each call in turn, still in the network's input."""
    weights = positions.new_ones(len(positions))
    for call in calls:
        height, width = call.output_size
        at = positions / mapping.stride(call.output_size)
        nearest_y = at[:, 0].round().long().clamp(0, height - 1)
        nearest_x = at[:, 1].round().long().clamp(0, width - 1)
        _, stride, padding, dilation = (at.new_tensor(pair) for pair in call.kernel)
        sampled = (at * stride - padding)[:, None] + call.taps() * dilation  # [M, G K, 2]
        if deformed:
            sampled = sampled + call.offsets()[:, :, nearest_y, nearest_x].permute(2, 0, 1)
        inside = ((sampled > -1) & (sampled < at.new_tensor(call.input_size))).all(-1)
        weights = (weights[:, None] * call.weights()[:, nearest_y, nearest_x].T * inside).flatten()
        positions = sampled.flatten(0, 1) * mapping.stride(call.input_size)
    return positions, weights
