"""The response of a node, and how each pixel of the image moves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .node import forward_to_node, frozen_eval, to_model_input

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .node import Node


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class ReceptiveField:
    """How each pixel of the image moves a node's response; tensors on the CPU, in the model's dtype.

    Attributes:
        gradient: ``[3, H, W]``: the response's derivative by each value of the image.
        map: ``[H, W]``: its length over the colours, the fastest that a pixel's colour can move the response.
        response: The node's response.
        centre: The node's own place in the image, ``[2]`` as x, y; (0, 0) is the first pixel's centre.
    """

    gradient: Tensor
    map: Tensor
    response: float
    centre: Tensor


def response(model: nn.Module, image: Tensor, node: Node) -> Tensor:
    """The node's response: the mean over the channels of its feature vector.

    It is what :func:`effective_receptive_field` and :func:`effective_sampling_locations` differentiate. The model is
    run in eval mode up to the node, and left as it was.

    Args:
        model: A detector of torchvision's convention, called with ``[image]``; or any other module, called with
            ``image[None]``.
        image: ``[3, H, W]`` as the model takes it (0..1 for a detector); converted to the model's dtype and device.
        node: A position of a layer, or a box.

    Returns:
        A scalar tensor in the model's dtype; differentiable by the image if that requires it, by nothing else.

    Raises:
        ValueError: There is no such node, or the image has a wrong shape.
        TypeError: An image of integers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.analysis import Node, response
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> response(net, torch.rand(3, 32, 32), Node("1", y=16, x=10)).shape
        torch.Size([])
    """
    image = to_model_input(model, image)
    with frozen_eval(model):
        features, _ = forward_to_node(model, image, node)
    return features.mean()


def effective_receptive_field(model: nn.Module, image: Tensor, node: Node) -> ReceptiveField:
    """The derivative of a node's response by every pixel of the image: one forward and one backward pass.

    The effective receptive field of arXiv 1811.11168, section 2; for arguments and errors see :func:`response`.

    Raises:
        ValueError: There is no such node, the image has a wrong shape, or the node does not depend on the image by
            differentiable steps.
        TypeError: An image of integers.

    Example:
        >>> import torch
        >>> from torchdcn import models
        >>> from torchdcn.analysis import Node, effective_receptive_field
        >>> model = models.create_model("faster_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, min_size=64)
        >>> effective_receptive_field(model, torch.rand(3, 64, 80), Node(roi=(10, 20, 50, 60))).map.shape
        torch.Size([64, 80])
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = to_model_input(model, image).detach().clone().requires_grad_()
        with frozen_eval(model):
            features, mapping = forward_to_node(model, pixels, node)
            value = features.mean()
            check_differentiable(value)
            (gradient,) = torch.autograd.grad(value, pixels)
    gradient = gradient.cpu()
    centre = mapping.centre(node, gradient)
    return ReceptiveField(gradient, gradient.square().sum(0).sqrt(), float(value.detach()), centre)


def check_differentiable(value: Tensor) -> None:
    """Raises ValueError where a response has no graph."""
    if not value.requires_grad:
        raise ValueError("node: it does not depend on the image by differentiable steps (no_grad in the model?)")
