"""Where the sampled function has a kink, where it ends, and where a position is no number."""

import math

import pytest
import torch
import torchvision
from torch import Tensor

from torchdcn.ops import backend, deform_conv2d

from .cases import each_backend

H, W = 4, 5
WEIGHT = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def sampled(
    input: Tensor, y: Tensor, x: Tensor, mask: Tensor | None = None, function: object = deform_conv2d
) -> Tensor:
    """The map at absolute positions, one per output pixel."""
    rows, columns = torch.meshgrid(torch.arange(float(H)), torch.arange(float(W)), indexing="ij")
    offset = torch.stack([y.reshape(H, W) - rows, x.reshape(H, W) - columns])[None]
    return function(input, offset, WEIGHT, mask=mask).flatten()  # type: ignore[operator, no-any-return]


def picture() -> Tensor:
    return torch.randn(1, 1, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def filled(values: list[float]) -> Tensor:
    """As many positions as there are output pixels; the last value is repeated."""
    return torch.tensor(values + values[-1:] * (H * W - len(values)), dtype=torch.float64)


KINKS = [-2.0, -1.0, -1 + 1e-9, -1e-9, 0.0, 1.0, 2.0, H - 1.0, H - 1 + 1e-9, H - 1e-9, float(H), H + 1.0]


@each_backend
@pytest.mark.parametrize("other", [-1.0, -0.25, 0.0, 1.5, W - 1.0, W - 0.5, float(W)])
@pytest.mark.parametrize("swapped", [False, True], ids=["y at a kink", "x at a kink"])
def test_at_kinks_and_borders_gradients_are_torchvisions(other: float, swapped: bool, name: str) -> None:
    results = []
    for function in (deform_conv2d, torchvision.ops.deform_conv2d):
        input = picture().requires_grad_()
        # On the swapped axis the map is one longer: the last kinks come to lie one pixel before its border.
        a, b = filled(KINKS).requires_grad_(), filled([other]).requires_grad_()
        with backend(name):
            output = sampled(input, b, a, function=function) if swapped else sampled(input, a, b, function=function)
            cotangent = torch.linspace(1, 2, H * W, dtype=torch.float64)
            results.append((output, *torch.autograd.grad(output, (input, a, b), cotangent)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_backend
def test_at_a_grid_line_the_derivative_is_that_of_the_cell_below_and_right(name: str) -> None:
    y, x = filled([1.0]).requires_grad_(), filled([2.0]).requires_grad_()
    input = picture()
    with backend(name):
        by_y, by_x = torch.autograd.grad(sampled(input, y, x)[0], (y, x))
    torch.testing.assert_close(by_y[0], input[0, 0, 2, 2] - input[0, 0, 1, 2])
    torch.testing.assert_close(by_x[0], input[0, 0, 1, 3] - input[0, 0, 1, 2])


@each_backend
def test_second_derivatives_are_nan_at_nan_zero_off_the_map_and_right_elsewhere(name: str) -> None:
    values = [math.nan, math.inf, -math.inf, 1e300, -7.0, 1.25]
    y, x = filled(values).requires_grad_(), filled([0.5]).requires_grad_()
    input, mask = picture().requires_grad_(), torch.ones(1, 1, H, W, dtype=torch.float64, requires_grad=True)
    with backend(name):
        output = sampled(input, y, x, mask)
        by_y, by_x = torch.autograd.grad(output.sum(), (y, x), create_graph=True)
        by_y_y, by_y_x, of_mask = torch.autograd.grad(by_y.sum(), (y, x, mask), retain_graph=True)
        of_input = torch.autograd.grad(by_y.sum() + by_x.sum(), input)[0]
    for derivative in (output, by_y, by_x, by_y_y, by_y_x, of_mask.flatten()):
        assert derivative[0].isnan()
        assert (derivative[1:5] == 0).all()
    cell = input[0, 0, 1:3, 0:2].detach()
    torch.testing.assert_close(by_y_x[5], cell[1, 1] - cell[1, 0] - cell[0, 1] + cell[0, 0])
    assert (by_y_y[1:] == 0).all()  # bilinear: linear in each coordinate
    assert not of_input.isnan().any()  # no pixel is read at a NaN


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step", [2**31 - 1, 2**30], ids=str)
def test_the_largest_steps_do_not_overflow(step: int, dtype: torch.dtype, name: str) -> None:
    """Of each output's four taps one lies on the map's first pixel, the others farther off than 31 bits count."""
    input, offset = picture().to(dtype).requires_grad_(), torch.zeros(1, 8, 2, 2, dtype=dtype)
    with backend(name):
        found = deform_conv2d(input, offset, torch.ones(1, 1, 2, 2, dtype=dtype), None, step, step, step)
        (gradient,) = torch.autograd.grad(found.sum(), input)
    assert torch.equal(found, input[:, :, :1, :1].expand(1, 1, 2, 2))
    assert gradient.flatten().tolist() == [4.0] + [0.0] * (H * W - 1)


@pytest.mark.parametrize("argument", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [2**31, 2**32, 2**63, 2**64, 10**40], ids=str)
def test_larger_steps_are_refused(argument: str, value: int) -> None:
    input, offset = picture(), torch.zeros(1, 2, H, W, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^{argument}: expected at most 2\^31 - 1, got \(1, {value}\)"):
        deform_conv2d(input, offset, WEIGHT, **{argument: (1, value)})  # type: ignore[arg-type]
