import pytest
import torch
from torch import Tensor

from torchdcn.ops import deform_conv2d

from .cases import CASES


def test_bias_is_added() -> None:
    case = CASES[0]
    input, offset, mask, weight = case.tensors()
    assert input is not None
    assert offset is not None
    assert weight is not None
    bias = torch.arange(6, dtype=torch.float64)
    with_bias = deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)
    without = deform_conv2d(input, offset, weight, padding=1, mask=mask)
    torch.testing.assert_close(with_bias - without, bias.reshape(1, 6, 1, 1).expand_as(without))


def _call(**changes: object) -> Tensor:
    arguments: dict[str, object] = {
        "input": torch.zeros(1, 4, 5, 6), "offset": torch.zeros(1, 18, 5, 6), "weight": torch.zeros(8, 4, 3, 3),
        "padding": 1, "mask": torch.zeros(1, 9, 5, 6),
    } | changes  # fmt: skip
    return deform_conv2d(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": torch.zeros(4, 5, 6)}, ValueError, r"input: expected 4 dimensions, got shape \[4, 5, 6\]"),
        ({"offset": torch.zeros(1, 17, 5, 6)}, ValueError, "offset: expected .* got 17"),
        (
            {"offset": torch.zeros(1, 18, 6, 5)},
            ValueError,
            r"offset: expected shape \[1, 18, 5, 6\], got \[1, 18, 6, 5\]",
        ),
        ({"offset": torch.zeros(1, 54, 5, 6)}, ValueError, "offset: expected .* got 54"),
        ({"mask": torch.zeros(1, 18, 5, 6)}, ValueError, r"mask: expected shape \[1, 9, 5, 6\]"),
        ({"mask": torch.zeros(2, 9, 5, 6)}, ValueError, r"mask: expected shape \[1, 9, 5, 6\]"),
        ({"weight": torch.zeros(8, 3, 3, 3)}, ValueError, "weight: expected .* 4 channels"),
        ({"weight": torch.zeros(7, 2, 3, 3)}, ValueError, "weight: expected"),
        ({"weight": torch.zeros(8, 4, 0, 3)}, ValueError, "weight: no dimension may be empty"),
        ({"offset": None}, TypeError, "offset: expected a tensor, got NoneType"),
        ({"padding": 1.0}, TypeError, "padding: expected an int or a pair of ints, got 1.0"),
        ({"bias": torch.zeros(8).double()}, TypeError, "bias: expected weight's torch.float32, got torch.float64"),
        ({"bias": torch.zeros(8, device="meta")}, RuntimeError, "bias: expected device cpu"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias: expected shape \[8\], got \[3\]"),
        ({"stride": 0}, ValueError, r"stride: expected at least 1, got \(0, 0\)"),
        ({"padding": (0, -1)}, ValueError, r"padding: expected at least 0"),
        ({"dilation": 0}, ValueError, "dilation: expected at least 1"),
        ({"stride": (1, 1, 1)}, ValueError, "stride: expected an int or a pair"),
        ({"dilation": 9}, ValueError, "input: a map of 5 x 6 is too small"),
        ({"input": torch.zeros(1, 4, 5, 6).int()}, TypeError, "input: expected float64, .* got torch.int32"),
        ({"weight": torch.zeros(8, 4, 3, 3).double()}, TypeError, "weight: expected torch.float32"),
        ({"offset": torch.zeros(1, 18, 5, 6).double()}, TypeError, "offset: expected torch.float32"),
        ({"mask": torch.zeros(1, 9, 5, 6).half()}, TypeError, "mask: expected torch.float32"),
        ({"offset": torch.zeros(1, 18, 5, 6, device="meta")}, RuntimeError, "offset: expected device cpu"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value),
)
def test_a_wrong_call_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _call(**changes)


def test_the_operators_themselves_name_a_wrong_argument_too() -> None:
    input, offset, mask, weight = CASES[0].tensors()
    numbers = ([1, 1], [1, 1], [1, 1], 1, 1)
    with pytest.raises(ValueError, match=r"stride: expected an int or a pair of ints, got \(1, 1, 1\)"):
        torch.ops.torchdcn.deform_conv2d(input, offset, mask, weight, [1, 1, 1], *numbers[1:])
    with pytest.raises(ValueError, match="offset: expected"):
        torch.ops.torchdcn.deform_conv2d(input, offset, mask, weight, *numbers[:4], 2)
    grad_output = torch.zeros(2, 6, 9, 10, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"grad_output: expected shape \[2, 6, 9, 11\], got \[2, 6, 9, 10\]"):
        torch.ops.torchdcn.deform_conv2d_backward(grad_output, input, offset, mask, weight, *numbers, [True] * 4)
