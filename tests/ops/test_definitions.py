"""The definitions, one short function for each operator, against what runs in their place: in bounded memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_conv2d, deform_roi_pool, sampling
from torchdcn.ops.deform_conv2d import reference as convolution
from torchdcn.ops.deform_roi_pool import reference as pooling

BUDGETS = {"a sample at a time": 1, "a few": 2**13, "all at once": 2**27}
each_budget = pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)


def assert_same_values_and_gradients(
    actual: Callable[..., Tensor], expected: Callable[..., Tensor], leaves: list[Tensor]
) -> None:
    leaves = [leaf.requires_grad_() for leaf in leaves]
    for function in (lambda f: f(*leaves), lambda f: torch.autograd.grad(f(*leaves).sin().sum(), leaves)):
        torch.testing.assert_close(function(actual), function(expected), rtol=1e-11, atol=1e-11)


@each_budget
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_convolution_in_bounded_memory_is_the_definition(
    budget: int, masked: bool, draw: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BUDGET", budget)
    leaves = [draw(2, 4, 5, 6), 2 * draw(2, 24, 3, 4), draw(6, 2, 2, 3), *([draw(2, 12, 3, 4)] if masked else [])]
    numbers = (2, 1), (1, 0), (1, 1)

    def bounded(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        with backend("reference"):
            return deform_conv2d(input, offset, weight, None, *numbers, mask)

    def definition(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        return convolution.deform_conv2d(input, offset, mask, weight, *numbers, 2, 2)

    assert_same_values_and_gradients(bounded, definition, leaves)


@each_budget
@pytest.mark.parametrize("ratio", [0, 2], ids=["samples by size", "2 x 2 samples"])
@pytest.mark.parametrize("moved", [True, False], ids=["offset and mask", "neither"])
def test_pooling_in_bounded_memory_is_the_definition_box_by_box(
    budget: int, ratio: int, moved: bool, draw: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BUDGET", budget)
    rows = [[0, 1, 2, 9, 7], [1, -4, 3, 30, 11.5], [0, 5, 5, 5, 5], [1, 6.2, 8, 2, 1], [0, 0.5, 0.25, 17, 4]]
    boxes, size, numbers = torch.tensor(rows, dtype=torch.float64), (3, 2), (0.5, ratio, 0.1)
    leaves = [draw(2, 3, 6, 8), *([3 * draw(5, 2, *size), draw(5, 1, *size)] if moved else [])]

    def bounded(input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        with backend("reference"):
            return deform_roi_pool(input, boxes, size, offset, mask, *numbers)

    def definition(input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        each = [(None if offset is None else offset[k], None if mask is None else mask[k]) for k in range(len(rows))]
        return torch.stack(
            [
                pooling.pool_box(input[int(row[0])], row[1:], *its, size, *numbers)
                for row, its in zip(rows, each, strict=True)
            ]
        )

    assert_same_values_and_gradients(bounded, definition, leaves)
