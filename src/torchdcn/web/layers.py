"""A network's sampling layers as bytes: the page computes from them where any position samples."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..analysis import Node
from ..analysis.layers import ConvCall, Recorder, RegularCall, kinds_of_layers
from ..analysis.node import at_rest, prepared, reach
from .jobs import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

STAGES = re.compile(r"backbone\.body\.layer[2-4]\.\d+\.conv2")  # where deformable layers are in the paper's networks


def layers_to_show(models: Sequence[nn.Module]) -> list[list[str]]:
    """The layers of each model whose samples are shown: its deformable ones.

    A regular network has the layers of the same names as the first deformable one, so that the two compare, or the 3x3
    ones of the stages that are deformable in the paper.
    """
    kinds = [kinds_of_layers(model) for model in models]
    shown = [[name for name, kind in of.items() if kind == "deformable"] for of in kinds]
    others = next((names for names in shown if names), [])
    for index, of in enumerate(kinds):
        if not shown[index]:
            regular = [name for name, kind in of.items() if kind == "regular"]
            same = [name for name in others if name in regular]
            shown[index] = same if same and len(same) == len(others) else [n for n in regular if STAGES.fullmatch(n)]
    return shown


def pixels_of(picture: NDArray[np.uint8]) -> Tensor:
    """``[H, W, 3]`` uint8 as the model takes it, ``[3, H, W]`` in 0..1."""
    return torch.tensor(picture).permute(2, 0, 1) / 255


def sampled(model: nn.Module, picture: NDArray[np.uint8], names: Sequence[str]) -> Answer:
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
    with torch.no_grad(), at_rest(model), recorder.watching(model):
        _, geometry = reach(model, prepared(model, pixels_of(picture)), Node(names[-1], 0, 0))
    calls = [call for call in recorder.calls if isinstance(call, (ConvCall, RegularCall))]
    parts: list[Tensor] = []
    layers = []
    for call in calls:
        regular = isinstance(call, RegularCall)
        used = call.as_deformable(torch.zeros_like(call.output))[0] if isinstance(call, RegularCall) else call
        offset = None if regular else _put(parts, used.offsets())
        mask = None if used.mask is None else _put(parts, used.weights())
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
                "inputStride": geometry.stride(used.input_size),  # pixels of the network's input a step
                "outputStride": geometry.stride(used.output_size),
                "offset": offset,
                "mask": mask,
            }
        )
    facts = {"image": geometry.image, "resized": geometry.resized, "layers": layers}
    return Answer(facts, b"".join(part.numpy().astype("<f4").tobytes() for part in parts))


def _node_of(model: nn.Module, name: str) -> str:
    """The module whose output is asked about when a layer is looked at: its residual block, which has the same grid.

    What a convolution gives before it is normalised and added up is nearly the same everywhere, whatever is shown.
    """
    block = name.rpartition(".")[0]
    return block if block and isinstance(model.get_submodule(block), (BasicBlock, Bottleneck)) else name


def _put(parts: list[Tensor], values: Tensor) -> int:
    """Adds numbers to the bytes; where they begin."""
    begin = sum(part.numel() for part in parts)
    parts.append(values.detach().float().cpu().contiguous())
    return begin
