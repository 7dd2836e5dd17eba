"""The reference as other devices run it: tile by tile, in bounded memory, with the values of the definition."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, func
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from torchdcn.ops import backend, backends, deform_conv2d, deform_roi_pool, sampling
from torchdcn.ops.deform_conv2d import reference as convolution
from torchdcn.ops.deform_roi_pool import reference as pooling

from . import cases, roi_cases
from .cases import Case, assert_like

BUDGET = 2**21


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def allow(size: int) -> None:
        monkeypatch.setattr(sampling, "BUDGET", size)

    return allow


def peak(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has given out at a time within a call, that of its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    assert result is not None  # alive until here
    found: list[tuple[int, int]] = []
    open_events = list(recorded.profiler.kineto_results.experimental_event_tree())
    while open_events:
        event = open_events.pop()
        open_events += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    highest = held = 0
    for _, size in sorted(found):
        held += size
        highest = max(highest, held)
    return highest


def bytes_of(*tensors: Tensor | None) -> int:
    return sum(t.nbytes for t in tensors if t is not None)


BASE = Case("base", N=1, C=16, Co=16, size=(24, 40))
LARGER = [
    BASE,
    replace(BASE, name="batch", N=5),
    replace(BASE, name="map", size=(70, 90)),
    replace(BASE, name="one long row", size=(1, 3000), kernel=(1, 3), padding=(0, 1)),
    replace(BASE, name="taps", kernel=(7, 7), padding=(3, 3)),
    replace(BASE, name="channels", C=128),
    replace(BASE, name="outputs", Co=300),
    replace(BASE, name="depthwise", groups=16, deform_groups=16),
    replace(BASE, name="one channel", C=1, Co=1, size=(100, 100), masked=False),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
each_larger = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in LARGER] + [(LARGER[1], dtype) for dtype in DTYPES[1:]],
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)


def widened(tensor: Tensor) -> int:
    """Bytes of a copy in the dtype of sums."""
    return tensor.numel() * sampling.sum_dtype(tensor).itemsize


@each_larger
def test_forward_holds_the_budget_at_most(case: Case, dtype: torch.dtype, budget: Callable[[int], None]) -> None:
    budget(BUDGET)
    tensors = case.tensors(dtype)
    with backend("reference"):
        output = cases.ours(case, tensors)
        beyond = peak(lambda: cases.ours(case, tensors)) - bytes_of(output)
    weight = tensors[3]
    assert weight is not None
    assert beyond < BUDGET + (widened(weight) if dtype == torch.bfloat16 else 0)


@each_larger
def test_training_holds_the_budget_at_most(case: Case, dtype: torch.dtype, budget: Callable[[int], None]) -> None:
    """Beyond the output, its gradient and those of the arguments."""
    budget(BUDGET)
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors(dtype)]
    with backend("reference"):
        output = cases.ours(case, leaves)
        cotangent = torch.ones_like(output)

        def train() -> list[Tensor]:
            y = cases.ours(case, leaves)
            return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], cotangent)]

        beyond = peak(train) - bytes_of(output, *leaves)
    input, weight = leaves[0], leaves[3]
    assert input is not None
    assert weight is not None
    allowed = BUDGET + widened(weight)  # the sum of its gradient
    if dtype == torch.bfloat16:
        allowed += widened(weight) + widened(input[:1])
    assert beyond < allowed


def test_the_measurement_sees_what_the_definition_holds() -> None:
    case = replace(BASE, size=(70, 90))
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors(torch.float32)]
    columns = case.C * 9 * 70 * 90 * 4
    assert columns > BUDGET
    numbers = case.numbers()
    assert peak(lambda: convolution.deform_conv2d(*leaves, *numbers)) > 5 * columns  # type: ignore[arg-type]
    boxes, offset = many_boxes(200).float(), torch.zeros(200, 2, 7, 7, requires_grad=True)
    input = torch.zeros(2, 16, 40, 50, requires_grad=True)
    held = peak(lambda: pooling.deform_roi_pool(input, boxes, offset, None, (7, 7), 1.0, 2, 0.1))
    assert held > 5 * 200 * 49 * 4 * 16 * 4 > 5 * BUDGET


def many_boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, dtype=torch.float64, generator=generator).sort(1).values * 50
    return torch.cat([torch.arange(count).double()[:, None] % 2, corners.reshape(count, 4)], 1)


ROI_BASE = roi_cases.Case("base", C=16, size=(40, 50), bins=(7, 7), spatial_scale=1.0, boxes=many_boxes(30))
ROI_LARGER = [
    ROI_BASE,
    replace(ROI_BASE, name="boxes", boxes=many_boxes(150), sampling_ratio=2),
    replace(ROI_BASE, name="channels", C=128, sampling_ratio=2),
    replace(ROI_BASE, name="map", size=(150, 200)),
    replace(ROI_BASE, name="bins of one box", boxes=many_boxes(1), bins=(60, 90), sampling_ratio=2),
    replace(ROI_BASE, name="one channel", C=1, boxes=many_boxes(200)),
]


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in ROI_LARGER] + [(ROI_BASE, dtype) for dtype in DTYPES[1:]],
    ids=lambda value: value.name if isinstance(value, roi_cases.Case) else str(value),
)
def test_pooling_holds_the_budget_at_most(
    case: roi_cases.Case, dtype: torch.dtype, training: bool, budget: Callable[[int], None]
) -> None:
    budget(BUDGET)
    leaves = [None if t is None else t.requires_grad_(training) for t in case.tensors(dtype)]
    input = leaves[0]
    assert input is not None
    with backend("reference"):
        output = roi_cases.ours(case, leaves).detach()

        def run() -> list[Tensor]:
            y = roi_cases.ours(case, leaves)
            if not training:
                return [y]
            return [y.detach(), *torch.autograd.grad(y.sum(), [t for t in leaves if t is not None])]

        beyond = peak(run) - bytes_of(output) - (bytes_of(output, *leaves) if training else 0)
    rows = case.rows()
    allowed = BUDGET + 30 * rows.numel() * 8  # some numbers for each box
    if training and dtype == torch.bfloat16:
        allowed += widened(input[:1])
    assert beyond < allowed


SPLIT = [
    Case("3x3", N=2, C=2, size=(4, 5)),
    Case("stride and dilation", N=3, C=2, size=(6, 5), stride=(2, 1), dilation=(1, 2), padding=(2, 0), masked=False),
    Case("groups that cross deformable groups", C=12, Co=9, groups=3, deform_groups=4, size=(4, 3), kernel=(1, 2)),
]


@pytest.mark.parametrize("size", [1, 2**12, 2**15], ids=["each position alone", "a few", "images"])
@pytest.mark.parametrize("case", SPLIT, ids=lambda case: case.name)
def test_tiles_change_no_number(case: Case, size: int, budget: Callable[[int], None]) -> None:
    tensors = case.tensors()
    leaves = [t for t in tensors if t is not None]
    places = [i for i, t in enumerate(tensors) if t is not None]

    def definition(*varied: Tensor) -> Tensor:
        arguments = dict(zip(places, varied, strict=True))
        return convolution.deform_conv2d(*(arguments.get(i) for i in range(4)), *case.numbers())  # type: ignore[arg-type]

    expected_output, pullback = func.vjp(definition, *leaves)
    budget(size)
    with backend("reference"):
        output, found, cotangent = cases.gradients(cases.ours, case, tensors)
    assert_like(output, expected_output, 1e-13)
    for gradient, expected in zip(found.values(), pullback(cotangent), strict=True):
        assert_like(gradient, expected, 1e-12)


@pytest.mark.parametrize("size", [1, 2**14], ids=["each bin alone", "a few"])
@pytest.mark.parametrize("case", roi_cases.CASES[1:6], ids=lambda case: case.name)
def test_pieces_change_no_number(case: roi_cases.Case, size: int, budget: Callable[[int], None]) -> None:
    tensors = case.tensors()
    leaves = [t for t in tensors if t is not None]
    places = [i for i, t in enumerate(tensors) if t is not None]

    def definition(*varied: Tensor) -> Tensor:
        arguments = dict(zip(places, varied, strict=True))
        input, offset, mask = (arguments.get(i) for i in range(3))
        assert input is not None
        numbers = case.bins, case.spatial_scale, case.sampling_ratio, case.gamma
        return pooling.deform_roi_pool(input, case.rows(), offset, mask, *numbers)

    expected_output, pullback = func.vjp(definition, *leaves)
    budget(size)
    with backend("reference"):
        output, found, cotangent = roi_cases.gradients(roi_cases.ours, case, tensors)
    assert_like(output, expected_output, 1e-13)
    for gradient, expected in zip(found.values(), pullback(cotangent), strict=True):
        assert_like(gradient, expected, 1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30], ids=str)
def test_tiles_keep_what_a_sample_that_is_no_number_gives(value: float, budget: Callable[[int], None]) -> None:
    results = []
    for size in (1, 2**27):
        budget(size)
        tensors = BASE.tensors()
        for t in tensors[:3]:
            assert t is not None
            t[0, 2, 1, 3] = value
        with backend("reference"):
            output, found, _ = cases.gradients(cases.ours, replace(BASE, size=(5, 6)), small(tensors))
        results.append([output, *found.values()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def small(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [t if t is None or i == 3 else t[:, :, :5, :6] for i, t in enumerate(tensors)]


def test_gradients_and_second_derivatives_by_finite_differences() -> None:
    case = Case("", N=2, C=4, Co=2, size=(3, 4), kernel=(2, 2), deform_groups=2, spread=0.7)
    leaves = [t.requires_grad_() for t in case.tensors() if t is not None]

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(input, offset, weight, padding=1, mask=mask)

    with backend("reference"):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_batched_grad=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_a_backward_within_autocast_is_as_exact_as_without() -> None:
    case = replace(BASE, size=(5, 6))
    with backend("reference"):
        expected = cases.gradients(cases.ours, case, case.tensors(torch.float32))
        leaves = [t.requires_grad_() for t in case.tensors(torch.float32) if t is not None]
        output = cases.ours(case, leaves)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(output, leaves, expected[2])
    for gradient, known in zip(found, expected[1].values(), strict=True):
        assert_like(gradient, known, 1e-6)


# Devices without kernels


class Operations(TorchDispatchMode):
    """The names of all that torch is asked for, and on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.add((function._schema.name, result.device.type))
        return result


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "privateuseone", "meta"])
def test_the_reference_serves_every_other_device(device: str) -> None:
    assert backends.backend_for(torch.device(device)) == "reference"


def on_meta(tensors: list[Tensor | None]) -> list[Tensor]:
    return [t.to("meta").requires_grad_() for t in tensors if t is not None]


@pytest.mark.parametrize("size", [2**13, 2**27], ids=["a few", "together"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_on_the_meta_device_all_of_the_reference_runs_without_values(
    layout: torch.memory_format, size: int, budget: Callable[[int], None]
) -> None:
    """What asked for a value, or for a tensor on the CPU, would raise there."""
    budget(size)
    case = replace(BASE, C=4, Co=4, size=(2, 3), N=2)
    input, offset, mask, weight = on_meta(
        [None if t is None else t.contiguous(memory_format=layout) for t in case.tensors()]
    )
    boxes, shift, factor = on_meta([many_boxes(6), torch.zeros(6, 2, 2, 3), torch.zeros(6, 1, 2, 3)])
    shift, factor = shift.double(), factor.double()
    with Operations() as operations:
        output = deform_conv2d(input, offset, weight, padding=1, mask=mask)
        pooled = deform_roi_pool(input, boxes, (2, 3), shift, factor)
        found = torch.autograd.grad([output.sum(), pooled.sum()], [input, offset, weight, mask, shift, factor])
    assert output.shape == (2, 4, 2, 3)
    assert output.is_contiguous(memory_format=layout)
    assert pooled.shape == (6, 4, 2, 3)
    for gradient, leaf in zip(found, (input, offset, weight, mask, shift, factor), strict=True):
        assert (gradient.shape, gradient.stride()) == (leaf.shape, leaf.stride())
    assert {("aten::gather", "meta"), ("aten::scatter_add_", "meta"), ("aten::bmm", "meta")} <= operations.seen
    assert not {name for name, device in operations.seen if name.startswith("torchdcn::") or device == "cpu"} - {
        "aten::arange", "aten::lift_fresh", "aten::empty", "aten::detach",
    }  # fmt: skip


def test_training_on_the_reference_runs_no_kernel_and_no_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would hold every sample until its derivative is asked for."""
    monkeypatch.setattr(sampling, "BUDGET", 2**16)
    case = replace(BASE, C=4, Co=4, size=(5, 6))
    leaves = [t.requires_grad_() for t in case.tensors() if t is not None]
    with backend("reference"), Operations() as operations:
        deform_conv2d(leaves[0], leaves[1], leaves[3], padding=1, mask=leaves[2]).sum().backward()
    assert ("aten::scatter_add_", "cpu") in operations.seen
    assert not {name for name, _ in operations.seen if name.startswith("torchdcn::")}
