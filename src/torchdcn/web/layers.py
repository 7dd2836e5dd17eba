"""A network's sampling layers as bytes, from which the page computes where any position samples."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..analysis import Node
from ..analysis.explain import picture_tensor
from ..analysis.layers import ConvCall, Recorder, RegularCall, kinds_of_layers
from ..analysis.node import forward_to_node, frozen_eval, to_model_input
from .jobs import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

STAGES = re.compile(r"backbone\.body\.layer[2-4]\.\d+\.conv2")  # the paper's networks have deformable layers here


def stage_convolutions(model: nn.Module) -> list[str]:
    """The ordinary convolutions of a regular network that are deformable ones in the paper's networks."""
    return [name for name, kind in kinds_of_layers(model).items() if kind == "regular" and STAGES.fullmatch(name)]


def layer_samples(model: nn.Module, picture: NDArray[np.uint8], names: Sequence[str]) -> Result:
    """One forward pass; where every position of these layers samples.

    Args:
        model: A detector.
        picture: ``[H, W, 3]`` uint8.
        names: The layers' paths, in the order in which they are used.

    Returns:
        A header, and for each layer its offsets ``[G K, 2, Ho, Wo]`` (dy, dx in pixels of the layer's input), then its
        mask ``[G K, Ho, Wo]``, as little-endian float32. The header has the place of each in the bytes, in floats; None
        where a layer moves nothing or weighs nothing.
    """
    recorder = Recorder(set(names))
    with torch.no_grad(), frozen_eval(model), recorder.watching(model):
        _, mapping = forward_to_node(model, to_model_input(model, picture_tensor(picture)), Node(names[-1], 0, 0))
    calls = [call for call in recorder.calls if isinstance(call, (ConvCall, RegularCall))]
    parts: list[Tensor] = []
    layers = []
    for call in calls:
        regular = isinstance(call, RegularCall)
        used = call.as_deformable(torch.zeros_like(call.output))[0] if isinstance(call, RegularCall) else call
        offset = None if regular else _append(parts, used.offsets())
        mask = None if used.mask is None else _append(parts, used.weights())
        layers.append(
            {
                "name": used.name,
                "node": _node_of(model, used.name),
                "stride": used.kernel[1],
                "padding": used.kernel[2],
                "dilation": used.kernel[3],
                "taps": used.taps().int().tolist(),  # [G K, 2], row and column in the kernel
                "input": used.input_size,
                "output": used.output_size,
                "inputStride": mapping.stride(used.input_size),  # pixels of the network's input a step
                "outputStride": mapping.stride(used.output_size),
                "offset": offset,
                "mask": mask,
            }
        )
    facts = {"image": mapping.image, "resized": mapping.resized, "layers": layers}
    return Result(facts, b"".join(part.numpy().astype("<f4").tobytes() for part in parts))


def _node_of(model: nn.Module, name: str) -> str:
    """The module whose output is explained when a layer is chosen: its residual block, which has the same grid.

    The output of a convolution alone, before normalisation and addition, is nearly the same at all positions.
    """
    block = name.rpartition(".")[0]
    return block if block and isinstance(model.get_submodule(block), (BasicBlock, Bottleneck)) else name


def _append(parts: list[Tensor], values: Tensor) -> int:
    """Adds numbers to the bytes, and returns where they begin."""
    begin = sum(part.numel() for part in parts)
    parts.append(values.detach().float().cpu().contiguous())
    return begin
