"""The places that a network samples, and how much each matters to a node."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from .layers import BinCall, ConvCall, Recorder, RegularCall, kinds_of_layers
from .node import forward_to_node, frozen_eval, to_model_input
from .receptive_field import check_differentiable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from .node import ImageMapping, Node


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class EffectiveLocations:
    """Every sampling location of the chosen layers and how much it matters; tensors on the CPU, in the model's dtype.

    Locations come layer by layer as the network uses them, within a layer by deformable group and tap, then by row and
    column of its output (bins: by row and column). (0, 0) is the first pixel's centre.

    Attributes:
        points: ``[M, 2]`` as x, y in pixels of the image.
        strengths: ``[M]``, at least 0: the length of ``gradients``.
        gradients: ``[M, 2]``: the response's derivative by ``points``, as x, y: per pixel of the image, so that layers
            of all strides compare.
        weights: ``[M]``: each sample's or bin's modulation in 0..1; 1 where there is none.
        layer: ``[M]`` int64: which of ``layers`` it belongs to.
        layers: The layers' paths.
        response: The node's response.
        centre: The node's own place, ``[2]`` as x, y.
        image_size: (H, W).
    """

    points: Tensor
    strengths: Tensor
    gradients: Tensor
    weights: Tensor
    layer: Tensor
    layers: tuple[str, ...]
    response: float
    centre: Tensor
    image_size: tuple[int, int]

    def of(self, pattern: str) -> EffectiveLocations:
        """Those of the layers whose path fits a pattern, as ``fnmatch`` has them.

        Raises:
            ValueError: There is none.
        """
        chosen = [i for i, name in enumerate(self.layers) if fnmatchcase(name, pattern)]
        if not chosen:
            raise ValueError(f"pattern: {pattern!r} fits none of {', '.join(self.layers)}")
        return self._rows(torch.isin(self.layer, torch.tensor(chosen)).nonzero()[:, 0])

    def strongest(self, count: int) -> EffectiveLocations:
        """The ``count`` strongest, best first; all where there are no more."""
        return self._rows(self.strengths.argsort(descending=True, stable=True)[:count])

    def _rows(self, rows: Tensor) -> EffectiveLocations:
        names = ("points", "strengths", "gradients", "weights", "layer")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def effective_sampling_locations(
    model: nn.Module,
    image: Tensor,
    node: Node,
    layers: str | Iterable[str] | None = None,
    *,
    regular: Iterable[str] = (),
) -> EffectiveLocations:
    """The sampling locations and bins that a node depends on, and the response's derivative by each place.

    Those of arXiv 1811.11168, section 2. The derivative is exact, from the operators' own gradient by their offsets,
    and total: a sample that moves also changes where later layers sample. One forward and one backward pass.

    Args:
        model: A detector of torchvision's convention, called with ``[image]``; or any other module, called with
            ``image[None]``. It is run in eval mode up to the node, and left as it was.
        image: ``[3, H, W]`` as the model takes it (0..1 for a detector); converted to the model's dtype and device.
        node: A position of a layer, or a box.
        layers: Patterns of layers' paths as ``fnmatch`` has them (``"backbone.body.layer4.*"``), which may also choose
            ordinary ``nn.Conv2d``: their taps have places too, and where the derivative has a kink it is the mean of
            both sides. None: all deformable convolutions before the node, or where there are none all ordinary
            ones larger than 1x1; and the bins of RoI pooling, moved or not (modules of ``torchvision.ops.RoIAlign``
            with ``aligned``).
        regular: For a model without deformable convolutions, if ``layers`` is None: paths of the ordinary ones to look
            at instead of all that are larger than 1x1. They are passed over if none of them is before the node.

    Returns:
        All locations of these layers, also those that do not matter. Index ``i`` of a map of stride ``s`` lies at pixel
        ``s * i``, as odd kernels with half padding have it; bins lie where their box is.

    Raises:
        ValueError: There is no such node or layer, the layers are not used on the way to the node, the image has a
            wrong shape, or there are no differentiable steps from the image to the node.
        TypeError: An image of integers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.analysis import Node, effective_sampling_locations
        >>> from torchdcn.nn import ModulatedDeformConv2dPack
        >>> net = nn.Sequential(*[ModulatedDeformConv2dPack(3, 3, 3, padding=1) for _ in range(2)])
        >>> found = effective_sampling_locations(net, torch.rand(3, 32, 32), Node("1", y=16, x=10))
        >>> found.points.shape, found.layers, int((found.of("1").strengths > 0).sum())
        (torch.Size([18432, 2]), ('0', '1'), 9)
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = to_model_input(model, image).detach().clone().requires_grad_()
        for chosen in _candidate_layers(model, layers, set(regular)):
            recorder = Recorder(chosen)
            with frozen_eval(model), recorder.watching(model):
                features, mapping = forward_to_node(model, pixels, node)
            if any(not isinstance(call, BinCall) for call in recorder.calls):
                break
        value = features.mean()
        check_differentiable(value)
        if not recorder.calls:
            raise ValueError(f"layers: none of them is used on the way to {node}")
        by = [call.output if isinstance(call, RegularCall) else call.offset for call in recorder.calls]
        gradients = torch.autograd.grad(value, by, allow_unused=True)
    found = [
        _locate(call, torch.zeros_like(of) if gradient is None else gradient, mapping)
        for call, of, gradient in zip(recorder.calls, by, gradients, strict=True)
    ]
    names = tuple(dict.fromkeys(call.name for call in recorder.calls))
    layer = [torch.full((len(f[0]),), names.index(c.name)) for f, c in zip(found, recorder.calls, strict=True)]
    points, moves, weights = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return EffectiveLocations(
        points=points,
        strengths=moves.square().sum(1).sqrt(),
        gradients=moves,
        weights=weights,
        layer=torch.cat(layer),
        layers=names,
        response=float(value.detach()),
        centre=mapping.centre(node, points),
        image_size=mapping.image,
    )


def _locate(
    call: ConvCall | BinCall | RegularCall, gradient: Tensor, mapping: ImageMapping
) -> tuple[Tensor, Tensor, Tensor]:  # [M, 2], [M, 2], [M]
    """Points, the response's derivative by them, and weights."""
    deformable: ConvCall | BinCall
    if isinstance(call, RegularCall):
        deformable, gradient = call.as_deformable(gradient)
    else:
        deformable = call
    moves = deformable.pixel_gradient(gradient, mapping)
    return deformable.points(mapping).reshape(-1, 2), moves.reshape(-1, 2), deformable.weights().reshape(-1)


def _candidate_layers(model: nn.Module, layers: str | Iterable[str] | None, preferred: set[str]) -> list[set[str]]:
    """Sets of layers to look at; the first set with a convolution before the node is taken."""
    kinds = kinds_of_layers(model)
    if layers is None:
        deformable, bins, regular = (
            {name for name, kind in kinds.items() if kind == wanted} for wanted in ("deformable", "bins", "regular")
        )
        larger = {n for n in regular if max(cast("nn.Conv2d", model.get_submodule(n)).kernel_size) > 1}
        first = deformable or preferred & regular
        return [first | bins, larger | bins] if first else [larger | bins]
    chosen = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        fitting = {name for name in kinds if fnmatchcase(name, pattern)}
        if not fitting:
            near = difflib.get_close_matches(pattern, kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"layers: {pattern!r} fits no convolution or RoI pooling of the model{hint}")
        chosen |= fitting
    return [chosen]
