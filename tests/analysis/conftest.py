from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from torchdcn import models
from torchdcn.nn import DeformConv2dPack, DeformRoIPoolPack, ModulatedDeformRoIPoolPack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, with offsets that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, DeformConv2dPack):
                offset = module.conv_offset
                for parameter, size in ((offset.weight, offset.weight[0].numel() ** -0.5), (offset.bias, 0.5)):
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if isinstance(module, DeformRoIPoolPack):
                for child in module.children():
                    last = [layer for layer in child.modules() if isinstance(layer, nn.Linear)][-1]
                    last.bias.copy_(torch.randn(last.bias.shape, generator=generator, dtype=torch.float64))
                    last.weight.copy_(0.05 * torch.randn(last.weight.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture
def stirred() -> Callable[..., nn.Module]:
    return _stirred


@pytest.fixture
def detector() -> Callable[..., Any]:
    """A small float64 detector with offsets that are not zero, in training mode but for its RPN."""

    def build(name: str = "faster_rcnn_r18_fpn_mdconv_c3-c5", *, mdpool: bool = False, **settings: Any) -> Any:
        torch.manual_seed(0)
        small = {"min_size": 64, "max_size": 96, "fpn_channels": 32, "box_head_channels": 24} | settings
        model = models.create_model(name, num_classes=2, **small)
        if mdpool:
            layers = model.roi_heads.box_roi_pool.layers
            for level, stride in enumerate((4, 8, 16, 32)):
                layers[level] = ModulatedDeformRoIPoolPack(7, 32, 16, spatial_scale=1 / stride, gamma=0.1)
        _stirred(model).train()
        model.rpn.eval()
        return model

    return build


def _state(model: nn.Module) -> Any:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()],
    )


@pytest.fixture
def unchanged() -> Any:
    """``with unchanged(model):`` checks that afterwards the model is as it was, to the last flag and hook."""

    @contextmanager
    def check(model: nn.Module) -> Iterator[None]:
        tensors, *rest = _state(model)
        yield
        after, *rest_after = _state(model)
        assert rest == rest_after
        assert all(torch.equal(tensors[name], after[name]) for name in tensors)

    return check
