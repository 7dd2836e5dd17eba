"""The functions are one node of a graph that torch.fx traces."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from torchdcn.ops import deform_conv2d, deform_roi_pool


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Conv2d(4, 18, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.rand(6, 4, 3, 3)), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        moved = deform_conv2d(x, self.predict(x), self.weight, bias=self.bias, padding=1)
        return deform_roi_pool(moved, [boxes], (2, 3), spatial_scale=0.5)


ARGUMENTS = torch.rand(1, 4, 9, 9), torch.tensor([[1.0, 2.0, 9.0, 12.0]])


@pytest.mark.parametrize(
    "again",
    [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), fx.symbolic_trace],  # noqa: S301
    ids=["itself", "deepcopy", "pickle", "trace"],
)
def test_functions_are_recorded_with_the_eager_networks_values(again: Callable[[Any], Any]) -> None:
    network = Calls()
    traced = again(fx.symbolic_trace(network))
    functions = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert functions == [deform_conv2d, deform_roi_pool]
    assert torch.equal(traced(*ARGUMENTS), network(*ARGUMENTS))
