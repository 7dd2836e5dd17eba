import pytest
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_conv2d

from .cases import CASES, Case, assert_like, each_backend, gradients, ours


@each_backend
def test_gradcheck_and_second_derivatives(name: str) -> None:
    case = Case("", N=1, C=4, Co=2, size=(4, 5), deform_groups=2, spread=0.7)
    leaves = [t.requires_grad_() for t in case.tensors() if t is not None]
    with backend(name):
        assert torch.autograd.gradcheck(lambda *t: ours(case, list(t)), leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *t: ours(case, list(t)), leaves, fast_mode=True)


def test_jvp_is_the_derivative() -> None:
    case = Case("", N=1, C=4, Co=2, size=(4, 5), spread=0.7)
    tensors = case.tensors()
    input = tensors[0]
    assert input is not None
    tangent = torch.randn_like(input)
    _, found = torch.func.jvp(lambda x: ours(case, [x, *tensors[1:]]), (input,), (tangent,))
    assert_like(found, ours(case, [tangent, *tensors[1:]]), 1e-12)  # linear in its input


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_opcheck(masked: bool) -> None:
    case = Case("", N=1, C=4, Co=2, size=(4, 5), masked=masked)
    tensors = [None if t is None else t.requires_grad_() for t in case.tensors(torch.float32)]
    torch.library.opcheck(torch.ops.torchdcn.deform_conv2d.default, (*tensors, *case.numbers()))
    plain = [None if t is None else t.detach() for t in tensors]
    output = ours(case, plain)
    wanted = [True, True, masked, True]
    torch.library.opcheck(torch.ops.torchdcn.deform_conv2d_backward.default, (output, *plain, *case.numbers(), wanted))


def test_compiles_without_a_break_and_trains() -> None:
    case = Case("", N=1, C=4, Co=2, size=(4, 5))
    tensors = case.tensors(torch.float32)
    output, expected, cotangent = gradients(ours, case, tensors)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    compiled_output, found, _ = gradients(compiled, case, tensors, cotangent)
    assert_like(compiled_output, output, 1e-6)
    for argument in expected:
        assert_like(found[argument], expected[argument], 1e-6)


def test_autocast_computes_features_in_bfloat16_and_leaves_offsets_alone() -> None:
    case = CASES[0]
    tensors = case.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(case, tensors)
    assert output.dtype == torch.bfloat16
    assert_like(output.float(), ours(case, tensors), 2e-2)


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
        ({"weight": torch.zeros(8, 4, 0, 3)}, ValueError, "weight: only the batch may be empty"),
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
