"""RoI pooling's Triton kernels on CPU tensors; test_triton.py runs them in a process that has TRITON_INTERPRET=1.

The interpreter takes a second for a box or two: boxes are few here, and their bins small.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torchdcn.ops import available_backends, backend, deform_roi_pool

from .cases import assert_like
from .roi_cases import BOXES, Case, gradients, ours

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered:RuntimeWarning")

FEW = BOXES[[2, 8]]  # reaching out, inside out
SMALL = Case("", C=3, size=(5, 6), bins=(1, 2), spatial_scale=0.15, sampling_ratio=1, boxes=FEW)
CASES = [
    replace(SMALL, name="adaptive", sampling_ratio=0, boxes=BOXES[[1, 4, 5]]),
    replace(SMALL, name="several blocks of bins and channels", C=35, bins=(3, 7), boxes=BOXES[1:2]),
    replace(SMALL, name="2 samples, large gamma", sampling_ratio=2, gamma=0.7, boxes=BOXES[2:3]),
    replace(SMALL, name="samples on the grid", sampling_ratio=2, spatial_scale=0.5, boxes=BOXES[9:]),
    replace(SMALL, name="offset only", masked=False),
    replace(SMALL, name="mask only", deformed=False),
    replace(SMALL, name="plain", deformed=False, masked=False),
    replace(SMALL, name="one pixel", N=1, size=(1, 1), spatial_scale=0.05, boxes=BOXES[:1]),
    replace(SMALL, name="a row, off the map too", size=(1, 13), boxes=BOXES[[1, 6]]),
    replace(SMALL, name="a bin of many samples", N=1, C=1, bins=(1, 1), size=(3, 3), sampling_ratio=3, boxes=BOXES[:1]),
]
DTYPES = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def atomic(poison: None) -> None:
    """After `poison`, which wants deterministic algorithms: here they decide how grad_input is summed."""
    assert poison is None
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def both(case: Case, tensors: list[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients from Triton, and from the reference in float64, for one cotangent."""
    with backend("triton"):
        output, found, cotangent = gradients(ours, case, tensors)
    exact = [None if t is None else t.double() for t in tensors]
    rounded = case if output.dtype == torch.float64 else replace(case, boxes=case.rows().float().double())
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, rounded, exact, cotangent.double())
    assert all(found[name].dtype == t.dtype for name, t in zip(found, filter(_is_tensor, tensors), strict=True))
    return [output, *found.values()], [expected_output, *expected.values()]


def _is_tensor(tensor: Tensor | None) -> bool:
    return tensor is not None


def assert_same(case: Case, tensors: list[Tensor | None], tolerance: float) -> None:
    for actual, expected in zip(*both(case, tensors), strict=True):
        torch.testing.assert_close(
            actual.double(), expected, rtol=tolerance, atol=tolerance * _largest(expected), equal_nan=True
        )


def _largest(tensor: Tensor) -> float:
    return float(tensor.nan_to_num(0, 0, 0).abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_output_and_gradients_equal_the_references(case: Case) -> None:
    for actual, expected in zip(*both(case, case.tensors()), strict=True):
        assert_like(actual, expected, 1e-13)


def test_the_triton_kernels_run_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdcn.ops.deform_roi_pool import triton_launch

    assert available_backends()["triton"] == ""
    ran: list[str] = []
    monkeypatch.setattr(triton_launch, "forward", lambda *_: ran.append("forward"))
    monkeypatch.setattr(triton_launch, "backward", lambda *_: ran.append("backward"))
    leaves = [None if t is None else t.requires_grad_() for t in SMALL.tensors()]
    with backend("triton"):
        output = ours(SMALL, leaves)
    output.sum().backward()  # outside: a backward uses the kernels of its forward
    assert ran == ["forward", "backward"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lower_precision_stays_near_float64(dtype: torch.dtype) -> None:
    case = replace(SMALL, boxes=BOXES[1:2])
    for actual, expected in zip(*both(case, case.tensors(dtype)), strict=True):
        assert_like(actual, expected, DTYPES[dtype])


def test_indices_of_64_bits_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.language as tl

    from torchdcn.ops.deform_roi_pool import triton_launch

    asked: list[int] = []
    monkeypatch.setattr(triton_launch, "index_type", lambda *sizes: asked.append(max(sizes)) or tl.int64)
    case = replace(SMALL, boxes=BOXES[2:3])
    for actual, expected in zip(*both(case, case.tensors()), strict=True):
        assert_like(actual, expected, 1e-13)
    assert asked == [2 * 3 * 5 * 6] * 3  # of the largest tensor


def test_sums_in_fixed_point_are_the_references_too() -> None:
    torch.use_deterministic_algorithms(True)
    case = replace(SMALL, sampling_ratio=2, boxes=BOXES[[0, 2]])
    for actual, expected in zip(*both(case, case.tensors()), strict=True):
        assert_like(actual, expected, 1e-11)  # about 40 bits


def test_a_gradient_that_is_not_finite_stays_where_it_belongs() -> None:
    case, cotangent = replace(SMALL, boxes=BOXES[[0, 2]]), torch.ones(2, 3, 1, 2)
    cotangent[0, 0, 0, 0], cotangent[1, 1, 0, 0] = math.inf, math.nan
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        with backend("triton"):
            found = gradients(ours, case, case.tensors(torch.float32), cotangent)[1]["input"]
        with backend("reference"):
            expected = gradients(ours, case, case.tensors(torch.float32), cotangent)[1]["input"]
        assert found.isfinite().any()
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_every_tensor_may_be_channels_last() -> None:
    case = replace(SMALL, C=6, boxes=BOXES[1:3])
    tensors = case.tensors(torch.float32)
    last = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in tensors]
    with backend("triton"):
        output, found, cotangent = gradients(ours, case, tensors)
        output_last, found_last, _ = gradients(
            ours, case, last, cotangent.contiguous(memory_format=torch.channels_last)
        )
    assert output_last.is_contiguous(memory_format=torch.channels_last)
    assert found_last["input"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output, output_last)
    for name, gradient in found_last.items():
        assert_like(gradient, found[name], 1e-6)


def test_boxes_offset_and_mask_may_stay_float32_beside_16_bits() -> None:
    input, offset, mask = SMALL.tensors(torch.float32)
    assert input is not None
    actual, expected = both(SMALL, [input.bfloat16(), offset, mask])
    assert actual[2].dtype == torch.float32
    assert_like(actual[0], expected[0], 8e-3)
    assert_like(actual[2], expected[2], 8e-3)  # of a rounded cotangent
    step = torch.zeros(1, 1, 1, 1024, dtype=torch.bfloat16)
    step[..., 901:] = 1  # so that between pixels 900 and 901 the value is the position's fraction
    with backend("triton"):
        found = deform_roi_pool(step, torch.tensor([[0, 900.37, 0.5, 901.37, 0.5]]), 1, sampling_ratio=1)
    assert abs(float(found) - 0.37) < 2e-3


@pytest.mark.parametrize(("axis", "other"), [(0, 0.0), (1, 1e9)], ids=["x", "y, far off along x"])
def test_a_nan_offset_gives_nan_in_its_bin_and_nowhere_else(axis: int, other: float) -> None:
    case = replace(SMALL, boxes=BOXES[1:3])
    tensors = case.tensors(torch.float32)
    assert tensors[1] is not None
    tensors[1][1, axis, 0, 1], tensors[1][1, 1 - axis, 0, 1] = math.nan, other
    actual, _ = both(case, tensors)
    used = torch.zeros(actual[0].shape, dtype=torch.bool)
    used[1, :, 0, 1] = True
    assert torch.equal(actual[0].isnan(), used)
    assert_same(case, tensors, 2e-5)


def test_a_nan_mask_gives_nan_also_where_nothing_is_sampled() -> None:
    case = replace(SMALL, sampling_ratio=0, boxes=BOXES[5:7])
    tensors = case.tensors()
    assert tensors[2] is not None
    tensors[2][:, 0, 0, 1] = math.nan
    with backend("triton"):
        output = ours(case, tensors)
    assert output[:, :, 0, 1].isnan().all()
    assert (output[:, :, 0, 0] == 0).all()


@pytest.mark.parametrize("value", [-math.inf, 3e38], ids=str)
def test_an_infinite_or_huge_offset_gives_zero(value: float) -> None:
    case = replace(SMALL, boxes=BOXES[1:2])
    tensors = case.tensors(torch.float32)
    assert tensors[1] is not None
    tensors[1][0, 0, 0, 1] = value
    actual, _ = both(case, tensors)
    assert (actual[0][0, :, 0, 1] == 0).all()
    assert all(t.isfinite().all() for t in actual)
    assert_same(case, tensors, 2e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_boxes_without_size_or_end_are_answered(sampling_ratio: int) -> None:
    inf, nan = math.inf, math.nan
    rows = [[0, 0, 0, inf, 20], [0, -inf, -inf, inf, inf], [0, -1e30, -1e30, 1e30, 1e30], [0, 2, 2, 5, nan]]
    rows += [[1, -4e5, 0, 4e5, 5]]
    boxes = torch.tensor(rows, dtype=torch.float64)
    case = replace(SMALL, size=(1, 2), sampling_ratio=sampling_ratio, boxes=boxes)
    tensors = case.tensors()
    assert tensors[1] is not None
    tensors[1] /= 1e5  # or the largest box would be moved off the map
    actual, _ = both(case, tensors)
    assert (actual[0][:2] == 0).all()
    assert actual[0][3].isnan().all()
    assert sampling_ratio or actual[0][4].any()
    assert_same(case, tensors, 1e-9)


def test_values_and_derivatives_at_the_border_are_those_of_the_moved_sample() -> None:
    input = torch.arange(12, dtype=torch.float64).reshape(1, 1, 3, 4).square()
    places = [(-1, 1.5), (2, 1.5), (3, 1.5), (0, 0), (1, 4), (-1.01, 1), (1, 4.01)]
    boxes = torch.tensor([[0, x, y, x + 1, y + 1] for y, x in places], dtype=torch.float64)
    results = []
    for name in ("triton", "reference"):
        offset = torch.zeros(len(places), 2, 1, 1, dtype=torch.float64, requires_grad=True)
        with backend(name):
            value = deform_roi_pool(input, boxes, 1, offset, gamma=1.0)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), offset)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not results[0][1][:3, 1].any()  # by y, where that was moved
    assert results[0][1][:3, 0].all()


def test_only_the_wanted_gradients_are_computed() -> None:
    case = replace(SMALL, boxes=BOXES[1:2])
    tensors, grad_output = case.tensors(), torch.randn(1, 3, 1, 2).double()
    arguments = (grad_output, tensors[0], case.rows(), *tensors[1:], [1, 2], 0.15, 1, 0.1)
    with backend("reference"):
        everything = torch.ops.torchdcn.deform_roi_pool_backward(*arguments, [True] * 3)
    with backend("triton"):
        for i in range(3):
            wanted = [i == j for j in range(3)]
            found = torch.ops.torchdcn.deform_roi_pool_backward(*arguments, wanted)
            assert [t.numel() > 0 for t in found] == wanted
            assert_like(found[i], everything[i], 1e-13)


@pytest.mark.parametrize("N", [2, 0], ids=["images", "no image"])
def test_no_boxes_give_an_empty_output_and_zero_gradients(N: int) -> None:
    case = replace(SMALL, N=N, boxes=BOXES[:0])
    actual, _ = both(case, case.tensors())
    assert actual[0].shape == (0, 3, 1, 2)
    assert not actual[1].any()


@pytest.mark.parametrize("index", [-1.0, 2.0, math.nan])
def test_a_box_of_an_image_that_is_not_there_is_named(index: float) -> None:
    boxes = torch.zeros(3, 5)
    boxes[1, 0] = index
    with backend("triton"), pytest.raises(RuntimeError, match=r"^boxes: expected indices of images from 0 to 1"):
        deform_roi_pool(torch.zeros(2, 4, 5, 6), boxes, 2)


def test_opcheck() -> None:
    case = replace(SMALL, C=1, bins=(1, 1), boxes=BOXES[1:2])
    tensors = [t.requires_grad_() for t in case.tensors() if t is not None]
    arguments = (tensors[0], case.rows(), *tensors[1:], [1, 1], 0.15, 1, 0.1)
    with backend("triton"):
        torch.library.opcheck(torch.ops.torchdcn.deform_roi_pool.default, arguments)


def test_second_derivatives_and_transforms_go_through_the_reference() -> None:
    case = replace(SMALL, boxes=BOXES[1:2])
    input, offset, mask = case.tensors()
    assert offset is not None

    def loss(offset: Tensor) -> Tensor:
        return ours(case, [input, offset, mask]).square().sum()

    with backend("reference"):
        expected = torch.func.grad(loss)(offset)
    with backend("triton"):
        torch.testing.assert_close(torch.func.grad(loss)(offset), expected)
