"""Tests of the Triton kernels on CPU tensors; test_triton.py runs them in a process that has TRITON_INTERPRET=1."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torchdcn.ops import available_backends, backend, deform_conv2d
from torchdcn.ops.backends import backend_for

from .cases import Case, assert_like, gradients, ours

SMALL = Case("", N=1, C=3, Co=2, size=(4, 5), kernel=(1, 2), padding=(0, 1))
CASES = [
    Case("two tiles of positions", N=2, C=5, size=(5, 7)),
    Case("unmasked", C=3, size=(4, 5), kernel=(2, 2), masked=False),
    Case("far", N=1, size=(6, 5), kernel=(2, 1), spread=9.0),
    Case("stride and dilation", N=1, kernel=(2, 3), stride=(2, 1), dilation=(1, 2), padding=(2, 0)),
    Case("1x1", N=1, kernel=(1, 1), padding=(0, 0), C=4, size=(5, 5)),
    Case("35 to 19 channels", N=1, C=35, Co=19, size=(3, 4), kernel=(1, 2)),
    Case("4 deformable groups", N=1, C=24, size=(3, 4), kernel=(1, 2), deform_groups=4),
    Case("2 groups, 2 deformable groups", N=1, C=40, Co=8, size=(3, 4), kernel=(1, 2), groups=2, deform_groups=2),
    Case("groups that cross deformable groups", N=1, C=12, Co=9, size=(3, 3), kernel=(1, 1), groups=3, deform_groups=4),
    Case("depthwise", N=1, C=4, Co=8, size=(3, 4), kernel=(1, 2), groups=4, deform_groups=2),
    Case("one pixel", N=1, size=(1, 1)),
    Case("tall", N=1, C=2, size=(70, 1), kernel=(3, 1), padding=(1, 0)),
]
DTYPES = {torch.float32: 5e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}  # 16-bit columns are rounded too


@pytest.fixture(autouse=True, params=[False, True], ids=["atomic", "deterministic"])
def mode(request: pytest.FixtureRequest, poison: None) -> bool:
    """After `poison`, which wants deterministic algorithms: here they decide how grad_input is summed."""
    assert poison is None
    torch.use_deterministic_algorithms(request.param)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return bool(request.param)


def both(case: Case, tensors: list[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients from Triton, and from the reference in float64."""
    with backend("triton"):
        output, found, cotangent = gradients(ours, case, tensors)
    exact = [None if t is None else t.double() for t in tensors]
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, case, exact, cotangent.double())
    assert all(
        found[name].dtype == t.dtype for name, t in zip(found, [t for t in tensors if t is not None], strict=True)
    )
    return [output, *found.values()], [expected_output, *expected.values()]


def test_triton_can_be_chosen_but_is_not_the_default() -> None:
    assert available_backends()["triton"] == ""
    assert backend_for(torch.device("cpu")) == "cpp"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_output_and_gradients_equal_the_references(case: Case) -> None:
    for actual, expected in zip(*both(case, case.tensors()), strict=True):
        assert_like(actual, expected, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lower_precision_stays_near_float64(dtype: torch.dtype) -> None:
    case = replace(SMALL, C=20)
    for actual, expected in zip(*both(case, case.tensors(dtype)), strict=True):
        assert_like(actual, expected, DTYPES[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_offset_and_mask_may_stay_float32_beside_16_bit_features(dtype: torch.dtype) -> None:
    input, offset, mask, weight = SMALL.tensors(torch.float32)
    assert input is not None
    assert weight is not None
    actual, expected = both(SMALL, [input.to(dtype), offset, mask, weight.to(dtype)])
    assert actual[2].dtype == torch.float32
    assert_like(actual[0], expected[0], DTYPES[dtype])
    assert_like(actual[2], expected[2], 1e-5)
    assert_like(actual[3], expected[3], 1e-5)


@pytest.mark.parametrize("spacing", [1.0, 0.5], ids=["integer", "half-integer"])
def test_offsets_on_the_grid_have_the_references_gradients(spacing: float) -> None:
    tensors = SMALL.tensors()
    assert tensors[1] is not None
    steps = torch.randint(-6, 7, tensors[1].shape, generator=torch.Generator().manual_seed(2))
    tensors[1] = (steps * spacing).double()
    for actual, expected in zip(*both(SMALL, tensors), strict=True):
        assert_like(actual, expected, 1e-13)


def test_every_tensor_may_be_channels_last() -> None:
    case = replace(SMALL, N=2, C=6, deform_groups=2)
    tensors = case.tensors(torch.float32)
    last = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in tensors]
    with backend("triton"):
        output, found, cotangent = gradients(ours, case, tensors)
        output_last, found_last, _ = gradients(
            ours, case, last, cotangent.contiguous(memory_format=torch.channels_last)
        )
    assert output_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output, output_last)
    for name, gradient in found_last.items():
        assert gradient.is_contiguous(memory_format=torch.channels_last)
        assert_like(gradient, found[name], 1e-6)


@pytest.mark.parametrize("axis", [0, 1], ids="yx")
def test_a_nan_offset_gives_nan_where_it_is_used_and_nowhere_else(axis: int) -> None:
    tensors = SMALL.tensors(torch.float32)
    assert tensors[1] is not None
    tensors[1][0, axis, 2, 3] = math.nan
    tensors[1][0, 1 - axis, 2, 3] = 1e9  # far outside, yet NaN
    actual, expected = both(SMALL, tensors)
    used = torch.zeros(actual[0].shape, dtype=torch.bool)
    used[:, :, 2, 3] = True
    assert torch.equal(actual[0].isnan(), used)
    for gradient, known in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient.double(), known, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_nan_mask_gives_nan_where_it_is_used() -> None:
    tensors = SMALL.tensors(torch.float32)
    assert tensors[1] is not None
    assert tensors[2] is not None
    tensors[2][0, 1, 2, 3] = tensors[2][0, 0, 1, 1] = math.nan
    tensors[1][0, 0, 1, 1] = 1e9  # far outside, yet NaN
    actual, expected = both(SMALL, tensors)
    used = torch.zeros(actual[0].shape, dtype=torch.bool)
    used[:, :, 2, 3] = used[:, :, 1, 1] = True
    assert torch.equal(actual[0].isnan(), used)
    expected[2][0, :2, 1, 1] = math.nan  # as in the C++ kernels; the reference stops before it multiplies 0 by NaN
    for gradient, known in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient.double(), known, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, -3e9], ids=str)
def test_an_infinite_or_huge_offset_contributes_nothing(value: float) -> None:
    tensors = SMALL.tensors(torch.float32)
    assert tensors[1] is not None
    tensors[1][0, :2] = value
    actual, expected = both(SMALL, tensors)
    for gradient, known in zip(actual, expected, strict=True):
        assert_like(gradient, known, 5e-6)
    assert not actual[2][0, :2].any()
    assert not actual[3][0, 0].any()


def test_a_pixel_off_the_map_counts_as_zero_even_beside_infinity() -> None:
    tensors = SMALL.tensors(torch.float32)
    assert tensors[0] is not None
    tensors[0][0, :, 1, 2] = math.inf
    actual, expected = both(SMALL, tensors)
    assert torch.equal(actual[0].isfinite(), expected[0].isfinite())
    assert actual[0].isfinite().any()


def test_a_gradient_that_is_not_finite_stays_where_it_belongs() -> None:
    case, tensors = SMALL, SMALL.tensors(torch.float32)
    cotangent = torch.ones(1, 2, 4, 6)
    cotangent[0, :, 0, 0] = math.inf
    cotangent[0, 0, 3, 5] = math.nan
    with backend("triton"):
        found = gradients(ours, case, tensors, cotangent)[1]["input"]
    with backend("reference"):
        expected = gradients(ours, case, tensors, cotangent)[1]["input"]
    assert found.isfinite().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_the_largest_steps_do_not_overflow() -> None:
    far = 2**31 - 1
    input, weight, offset = torch.randn(1, 3, 1, 1), torch.randn(2, 3, 2, 2), torch.zeros(1, 8, 2, 2)
    with backend("reference"):
        expected = deform_conv2d(input, offset, weight, None, far, far, far)
    with backend("triton"):
        output = deform_conv2d(input, offset, weight, None, far, far, far)
    assert expected.any()
    assert_like(output, expected, 1e-6)


def test_backward_uses_the_kernels_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdcn.ops.deform_conv2d import triton_launch as launch

    ran = []
    monkeypatch.setattr(launch, "backward", lambda *arguments: ran.append(arguments))
    leaves = [None if t is None else t.requires_grad_() for t in SMALL.tensors()]
    with backend("triton"):
        output = ours(SMALL, leaves)
    output.sum().backward()
    assert len(ran) == 1


def test_only_the_wanted_gradients_are_computed() -> None:
    tensors = SMALL.tensors()
    grad_output = torch.randn(1, 2, 4, 6).double()
    with backend("reference"):
        everything = torch.ops.torchdcn.deform_conv2d_backward(grad_output, *tensors, *SMALL.numbers(), [True] * 4)
    with backend("triton"):
        for i in range(4):
            wanted = [i == j for j in range(4)]
            found = torch.ops.torchdcn.deform_conv2d_backward(grad_output, *tensors, *SMALL.numbers(), wanted)
            assert [t.numel() > 0 for t in found] == wanted
            assert_like(found[i], everything[i], 1e-13)


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients() -> None:
    case = replace(SMALL, N=0)
    actual, _ = both(case, case.tensors())
    assert actual[0].shape == (0, 2, 4, 6)
    assert not actual[-1].any()


def test_second_derivatives_and_transforms_go_through_the_reference() -> None:
    input, offset, mask, weight = SMALL.tensors()
    assert input is not None
    assert offset is not None
    assert weight is not None

    def loss(offset: Tensor) -> Tensor:
        return deform_conv2d(input, offset, weight, padding=(0, 1), mask=mask).square().sum()

    with backend("reference"):
        expected = torch.func.grad(loss)(offset)
    with backend("triton"):
        torch.testing.assert_close(torch.func.grad(loss)(offset), expected)
