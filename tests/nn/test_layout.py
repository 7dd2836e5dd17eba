from __future__ import annotations

import pytest
import torch
from torch import nn

from torchdcn.nn import DeformConv2dPack
from torchdcn.nn.layout import channels_last, match_layout, to_device


def test_convolutions_become_channels_last_and_deformable_weights_stay_contiguous() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), DeformConv2dPack(8, 8, 3, padding=1)).eval()
    nn.init.normal_(network[1].conv_offset.weight, std=0.1)
    x = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        before = network(x)
    parameters = list(network.parameters())
    assert channels_last(network) is network
    assert all(now is then for now, then in zip(network.parameters(), parameters, strict=True))
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].conv_offset.weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
    with torch.no_grad():
        after = network(x)
    assert after.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(after, before)


def test_on_a_cpu_a_network_is_channels_last_and_elsewhere_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), DeformConv2dPack(8, 8, 3))
    assert to_device(network, torch.device("cpu")) is network
    assert not network[0].weight.is_contiguous()
    assert network[1].weight.is_contiguous()
    other = to_device(nn.Sequential(nn.Conv2d(3, 8, 3)), torch.device("meta"))  # stands for a GPU
    assert other[0].weight.is_meta
    assert other[0].weight.is_contiguous()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_an_optimiser_learns_on_in_another_layout_as_it_did(kind: str, fused: bool) -> None:
    """Without it, torch's fused ones give weights the momentum of others."""

    def trained(relaid: bool) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), DeformConv2dPack(8, 8, 3, bias=False))
        settings = {"momentum": 0.9} if kind == "SGD" else {"amsgrad": True}
        optimiser = getattr(torch.optim, kind)(network.parameters(), lr=0.1, fused=fused, **settings)
        for step in range(3):
            if relaid and step == 1:
                channels_last(network)
                match_layout(optimiser)
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
            optimiser.step()
        return network

    for changed, plain in zip(trained(True).parameters(), trained(False).parameters(), strict=True):
        torch.testing.assert_close(changed, plain)


def test_what_an_optimiser_remembers_keeps_its_dtype_and_scalars() -> None:
    parameter = nn.Parameter(torch.rand(4, 3, 2, 2, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last))
    optimiser = torch.optim.SGD([parameter])
    moment, step = torch.rand(4, 3, 2, 2, dtype=torch.float64), torch.tensor(3.0)
    optimiser.state[parameter] = {"moment": moment, "step": step, "other": None}
    match_layout(optimiser)
    found = optimiser.state[parameter]
    assert torch.equal(found["moment"], moment)
    assert found["moment"].dtype == torch.float64
    assert found["moment"].stride() == parameter.stride()
    assert found["step"] is step
