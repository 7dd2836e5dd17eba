from __future__ import annotations

import torch
from torch import nn

from torchdcn.nn import DeformConv2dPack
from torchdcn.nn.layout import channels_last


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
