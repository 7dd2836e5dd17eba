"""What may be given to deform_roi_pool, in which layouts and dtypes, and what a wrong call is told."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_roi_pool

from .cases import assert_like
from .roi_cases import BACKENDS, BOXES, Case, each_backend, gradients, ours

SIXTEEN = (torch.bfloat16, torch.float16)
FLOATS = (torch.float64, torch.float32, *SIXTEEN)
last = torch.channels_last

STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.contiguous(memory_format=last),
    "every other": lambda t: t.new_zeros([2 * n for n in t.shape])[::2, ::2, ::2, ::2].copy_(t),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "at an odd address": lambda t: t.new_zeros(t.numel() + 1)[1:].view(t.shape).copy_(t),
}


@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_any_layout_gives_the_same_numbers(stored: Callable[[Tensor], Tensor], dtype: torch.dtype, name: str) -> None:
    case = Case("", C=19)
    tensors = case.tensors(dtype)
    with backend(name):
        output, found, cotangent = gradients(ours, case, tensors)
        other_output, other, _ = gradients(ours, case, [None if t is None else stored(t) for t in tensors])
        crossed, _, _ = gradients(ours, case, tensors, stored(cotangent))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    assert_like(other_output, output, tolerance)
    assert_like(crossed, output, tolerance)
    for argument in found:
        assert_like(other[argument], found[argument], tolerance)


@each_backend
def test_channels_last_in_gives_channels_last_out(name: str) -> None:
    input = torch.randn(2, 8, 11, 15).contiguous(memory_format=last).requires_grad_()
    with backend(name):
        output = deform_roi_pool(input, BOXES.float(), 3)
        (gradient,) = torch.autograd.grad(output.sum(), input)
    assert output.is_contiguous(memory_format=last)
    assert name == "reference" or gradient.is_contiguous(memory_format=last)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_mixture_of_dtypes_is_right_or_named(dtype: torch.dtype) -> None:
    input, offset, mask = Case("").tensors()
    assert input is not None
    assert offset is not None
    assert mask is not None
    for kinds in product((*FLOATS, torch.int32), repeat=3):
        beside = (dtype, torch.float32) if dtype in SIXTEEN else (dtype,)
        wrong = [n for n, kind in zip(("boxes", "offset", "mask"), kinds, strict=True) if kind not in beside]
        boxes, offsets, factors = (t.to(kind) for t, kind in zip((BOXES, offset, mask), kinds, strict=True))
        if not wrong:
            assert deform_roi_pool(input.to(dtype), boxes, (3, 2), offsets, factors).dtype == dtype
            continue
        with pytest.raises(TypeError, match=rf"^{wrong[0]}: expected torch\..* beside an input of {dtype}, got torch"):
            deform_roi_pool(input.to(dtype), boxes, (3, 2), offsets, factors)


@each_backend
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_positions_may_stay_float32_and_keep_their_digits(dtype: torch.dtype, name: str) -> None:
    step = torch.zeros(1, 1, 1, 1024, dtype=dtype)
    step[..., 901:] = 1  # so that between pixels 900 and 901 the value is the position's fraction
    boxes = torch.tensor([[0, 900.37, 0.5, 901.37, 0.5]])
    with backend(name):
        found = deform_roi_pool(step, boxes, 1, sampling_ratio=1)
    assert abs(float(found) - 0.37) < 2e-3


@each_backend
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_autocast_casts_the_features_and_leaves_the_rest(dtype: torch.dtype, name: str) -> None:
    case = Case("")
    input, offset, mask = case.tensors(torch.float32)
    assert input is not None
    with backend(name):
        by_hand = ours(case, [input.to(dtype), offset, mask])
        with torch.autocast("cpu", dtype):
            found = ours(case, [input, offset, mask])
    assert torch.equal(found, by_hand)


def test_shapes_on_the_meta_device() -> None:
    arguments = [t.to("meta") for t in (torch.rand(2, 5, 9, 9), torch.rand(7, 5), torch.rand(7, 2, 3, 4))]
    output = deform_roi_pool(arguments[0], arguments[1], (3, 4), arguments[2])
    assert output.shape == (7, 5, 3, 4)
    assert output.is_meta


def _call(**changes: object) -> Tensor:
    arguments: dict[str, object] = {
        "input": torch.zeros(2, 4, 5, 6), "boxes": torch.zeros(3, 5), "output_size": (2, 3),
        "offset": torch.zeros(3, 2, 2, 3), "mask": torch.zeros(3, 1, 2, 3),
    } | changes  # fmt: skip
    return deform_roi_pool(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": torch.zeros(4, 5, 6)}, ValueError, r"input: expected 4 dimensions, got shape \[4, 5, 6\]"),
        ({"input": torch.zeros(2, 4, 0, 6)}, ValueError, "input: only the batch may be empty"),
        ({"input": torch.zeros(2, 4, 5, 6).int()}, TypeError, "input: expected float64, .* got torch.int32"),
        ({"input": None}, TypeError, "input: expected a tensor, got NoneType"),
        ({"boxes": torch.zeros(3, 4)}, ValueError, r"boxes: expected shape \[K, 5\] .* got \[3, 4\]"),
        ({"boxes": torch.zeros(3, 5).double()}, TypeError, "boxes: expected torch.float32"),
        ({"boxes": None}, TypeError, r"boxes: expected a tensor \[K, 5\] or a list .* got NoneType"),
        ({"boxes": [torch.zeros(3, 4)]}, ValueError, "boxes: expected a tensor for each of 2 images, got 1"),
        ({"boxes": [torch.zeros(3, 4), None]}, TypeError, r"boxes\[1\]: expected a tensor, got NoneType"),
        ({"boxes": [torch.zeros(3, 5)] * 2}, ValueError, r"boxes\[0\]: expected shape \[L, 4\], got \[3, 5\]"),
        (
            {"boxes": [torch.zeros(1, 4), torch.zeros(2, 4).double()]},
            TypeError,
            r"boxes\[1\]: expected torch.float32",
        ),
        ({"offset": torch.zeros(3, 2, 3, 2)}, ValueError, r"offset: expected shape \[3, 2, 2, 3\], got \[3, 2, 3, 2\]"),
        ({"mask": torch.zeros(3, 2, 3)}, ValueError, r"mask: expected 4 dimensions, got shape \[3, 2, 3\]"),
        ({"mask": torch.zeros(3, 1, 2, 3, device="meta")}, RuntimeError, "mask: expected device cpu"),
        ({"output_size": 0}, ValueError, r"output_size: expected at least 1, got \(0, 0\)"),
        ({"output_size": 2.0}, TypeError, "output_size: expected an int or a pair of ints, got 2.0"),
        ({"spatial_scale": "1"}, TypeError, "spatial_scale: expected a number, got '1'"),
        ({"spatial_scale": float("nan")}, ValueError, "spatial_scale: expected a finite number, got nan"),
        ({"gamma": float("inf")}, ValueError, "gamma: expected a finite number, got inf"),
        ({"gamma": None}, TypeError, "gamma: expected a number, got None"),
        ({"sampling_ratio": 1.5}, TypeError, "sampling_ratio: expected an int, got 1.5"),
        ({"sampling_ratio": (2, 2)}, TypeError, r"sampling_ratio: expected an int, got \(2, 2\)"),
        ({"sampling_ratio": 2**31}, ValueError, r"sampling_ratio: expected at most 2\^31 - 1"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value),
)
def test_a_wrong_call_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        _call(**changes)


@pytest.mark.parametrize("index", [-1.0, 2.0, 1e30, float("nan")], ids=str)
def test_a_box_of_an_image_that_is_not_there_is_named(index: float) -> None:
    boxes = torch.zeros(3, 5)
    boxes[1, 0] = index
    for name in BACKENDS:
        with backend(name), pytest.raises(RuntimeError, match=r"^boxes: expected indices of images from 0 to 1"):
            _call(boxes=boxes)


def test_the_operators_themselves_name_a_wrong_argument_too() -> None:
    input, boxes = torch.zeros(2, 4, 5, 6), torch.zeros(3, 5)
    numbers = ([2, 3], 1.0, 0, 0.1)
    with pytest.raises(ValueError, match=r"output_size: expected an int or a pair of ints, got \(1, 1, 1\)"):
        torch.ops.torchdcn.deform_roi_pool(input, boxes, None, None, [1, 1, 1], *numbers[1:])
    with pytest.raises(ValueError, match=r"grad_output: expected shape \[3, 4, 2, 3\], got \[3, 4, 3, 2\]"):
        torch.ops.torchdcn.deform_roi_pool_backward(
            torch.zeros(3, 4, 3, 2), input, boxes, None, None, *numbers, [True] * 3
        )
