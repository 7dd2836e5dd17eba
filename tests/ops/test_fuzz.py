"""Random calls: no crash, no hang, no wrong number against the reference in float64, and every wrong call named.

The ordinary run is short and always the same. A long one, with other examples every time:
``TORCHDCN_FUZZ_EXAMPLES=100000 python -m pytest tests/ops/test_fuzz.py --hypothesis-show-statistics``.
"""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchdcn.ops import backend, deform_conv2d
from torchdcn.ops.deform_conv2d import reference

from .cases import NAMES

EXAMPLES = int(os.environ.get("TORCHDCN_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of the sum of the magnitudes of all terms: rounding of the result, and of some hundred float32 terms.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}
TINY = {torch.float64: 1e-300, torch.float32: 1e-36, torch.bfloat16: 1e-36, torch.float16: 1e-7}
LAYOUTS = ("contiguous", "channels last", "every other", "expanded", "batch innermost")
HUGE = ("input", "mask", "weight", "grad_output")  # one of them at a time: a product of two may overflow


@dataclass
class Call:
    """One call of the operator; tensors hold their values in float64."""

    sizes: tuple[int, ...]  # N, C, H, W, Co, kh, kw
    numbers: tuple[list[int], list[int], list[int], int, int]
    dtypes: dict[str, torch.dtype]
    layouts: dict[str, str]
    threads: int
    spread: float
    seed: int
    masked: bool
    specials: list[tuple[str, float]] = field(default_factory=list)
    huge: tuple[str, float] | None = None

    def tensors(self) -> dict[str, Tensor | None]:
        """Values as their dtypes hold them, in the asked layouts."""
        N, C, H, W, Co, kh, kw = self.sizes
        stride, padding, dilation, groups, G = self.numbers
        Ho, Wo = reference.output_size((H, W), (kh, kw), stride, padding, dilation)
        shapes = {
            "input": (N, C, H, W),
            "offset": (N, 2 * G * kh * kw, Ho, Wo),
            "mask": (N, G * kh * kw, Ho, Wo),
            "weight": (Co, C // groups, kh, kw),
            "grad_output": (N, Co, Ho, Wo),
        }
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[str, Tensor | None] = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, dtype=torch.float64, generator=generator)
            if name == "offset":  # eighths: their sums with whole numbers are exact, and many lie on kinks
                values = (self.spread * 8 * values).round() / 8
            for other, special in [*self.specials, *([self.huge] if self.huge else [])]:
                if other == name and values.numel():
                    place = int(torch.randint(values.numel(), (), generator=generator))
                    values.view(-1)[place] = special
            found[name] = stored(values.to(self.dtypes[name]), self.layouts[name])
        if not self.masked:
            found["mask"] = None
        return found


def stored(t: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return t.clone(memory_format=torch.channels_last)
    if layout == "every other":
        return torch.full([2 * n for n in t.shape], math.nan, dtype=t.dtype)[::2, ::2, ::2, ::2].copy_(t)
    if layout == "expanded":
        return t[:, :1].expand(t.shape)
    if layout == "batch innermost":
        return t.permute(1, 2, 3, 0).clone(memory_format=torch.contiguous_format).permute(3, 0, 1, 2)
    return t


@st.composite
def calls(draw: st.DrawFn) -> Call:
    def integers(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    groups, G = integers(1, 3), integers(1, 3)
    channels = math.lcm(groups, G) * draw(st.sampled_from([1, 2, 3, 5, 8, 17]))
    out_channels = groups * draw(st.sampled_from([1, 2, 3, 5, 16, 33]))
    kernel = [integers(1, 4) for _ in "hw"]
    stride, padding, dilation = ([integers(least, 3) for _ in "hw"] for least in (1, 0, 1))
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + integers(0, 11) for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    dtype = draw(st.sampled_from(DTYPES))
    sixteen = dtype in (torch.bfloat16, torch.float16)
    beside = {name: torch.float32 if sixteen and draw(st.booleans()) else dtype for name in ("offset", "mask")}
    dtypes = dict.fromkeys((*NAMES, "grad_output"), dtype) | beside
    large = 1e4 if dtype == torch.float16 else 1e30
    small = 6e-8 if torch.float16 in dtypes.values() else 1e-40
    strange = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, 1e-40, -0.0])  # 1e-40 + 1 is 1
    specials = [("offset", draw(strange)) for _ in range(draw(st.sampled_from([0, 0, 1, 3])))]
    specials += draw(st.lists(st.sampled_from([(n, v) for n in HUGE for v in (math.nan, small, 0.0)]), max_size=2))
    huge = st.sampled_from([(n, v) for n in HUGE for v in (large, -large, math.inf, -math.inf)])
    return Call(
        (integers(0, 3), channels, *size, out_channels, *kernel),
        (stride, padding, dilation, groups, G),
        dtypes,
        {name: draw(st.sampled_from(LAYOUTS)) for name in dtypes},
        threads=integers(1, 3),
        spread=draw(st.sampled_from([0.0, 0.7, 4.0, 20.0])),
        seed=integers(0, 2**32),
        masked=draw(st.booleans()),
        specials=specials,
        huge=draw(st.none() | huge),
    )


def run(tensors: dict[str, Tensor | None], call: Call) -> dict[str, Tensor]:
    """The output and every gradient."""
    arguments = [tensors[name] for name in NAMES]
    output = torch.ops.torchdcn.deform_conv2d(*arguments, *call.numbers)
    wanted = [True, True, call.masked, True]
    gradients = torch.ops.torchdcn.deform_conv2d_backward(tensors["grad_output"], *arguments, *call.numbers, wanted)
    found = dict(zip((f"gradient of {name}" for name in NAMES), gradients, strict=True)) | {"output": output}
    return {name: t for name, t in found.items() if call.masked or name != "gradient of mask"}


def magnitudes(exact: dict[str, Tensor | None], call: Call) -> dict[str, Tensor]:
    """What the terms of every result sum up to, were they all positive."""
    found = run({n: t if n == "offset" or t is None else t.abs() for n, t in exact.items()}, call)
    input, offset, mask, weight, gradient = (exact[name] for name in (*NAMES, "grad_output"))
    assert input is not None
    assert offset is not None
    assert weight is not None
    assert gradient is not None
    # The gradient of a position holds differences of corners: their sum, weighed as the sample is by the mask.
    corners = [torch.zeros_like(offset)]
    for dy in (0, 1):
        for dx in (0, 1):
            moved = offset.clone()
            moved[:, 0::2], moved[:, 1::2] = moved[:, 0::2].floor() + dy, moved[:, 1::2].floor() + dx
            by_mask = torch.ops.torchdcn.deform_conv2d_backward(
                gradient.abs(), input.abs(), moved, torch.ones_like(moved[:, ::2]), weight.abs(), *call.numbers,
                (False, False, True, False),
            )[2]  # fmt: skip
            corners.append((by_mask if mask is None else by_mask * mask.abs()).repeat_interleave(2, dim=1))
    return found | {"gradient of offset": torch.stack(corners).sum(0)}


@given(call=calls())
@fuzz
def test_kernels_give_the_reference_numbers_whatever_the_call(call: Call) -> None:
    tensors = call.tensors()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(call.threads)
        with backend("cpp"):
            found = run(tensors, call)
    finally:
        torch.set_num_threads(threads)
    exact = {name: None if t is None else t.double() for name, t in tensors.items()}
    with backend("reference"):
        expected, scale = run(exact, call), magnitudes(exact, call)
    for name, actual in found.items():
        assert actual.shape == expected[name].shape
        # A corner without weight is NaN under an infinite or NaN mask in the reference, and may be 0 in a kernel.
        zero_times = {n for n, v in [*call.specials, *([call.huge] if call.huge else [])] if math.isinf(v)}
        zero_times |= {"mask"} if name == "gradient of input" and ("mask", math.nan) in call.specials else set()
        certain = expected[name].isinf() if zero_times - {"offset"} else ~expected[name].isfinite()
        compare(name, actual, expected[name], scale[name], certain)


def compare(name: str, actual: Tensor, expected: Tensor, scale: Tensor, not_finite: Tensor) -> None:
    dtype = actual.dtype
    finite = expected.isfinite()
    wrongly_finite = not_finite & actual.isfinite()
    assert not wrongly_finite.any(), f"{name}: finite where the reference is {expected[wrongly_finite][:3].tolist()}"
    fits = finite & (scale < min(torch.finfo(dtype).max, 1e38 if dtype != torch.float64 else math.inf) / 16)
    error = (actual.double() - expected).abs()
    wrong = fits & ~(error <= TOLERANCE[dtype] * scale + TINY[dtype])
    assert not wrong.any(), (
        f"{name}: {actual[wrong][:3].tolist()} instead of {expected[wrong][:3].tolist()}, scale {scale[wrong][:3]}"
    )


VALID = Call(
    (2, 4, 6, 7, 6, 3, 3),
    ([1, 1], [1, 1], [1, 1], 2, 2),
    dict.fromkeys((*NAMES, "grad_output"), torch.float32),
    dict.fromkeys((*NAMES, "grad_output"), "contiguous"),
    threads=1, spread=1.0, seed=0, masked=True,
)  # fmt: skip


def valid_arguments() -> dict[str, Any]:
    tensors = VALID.tensors()
    stride, padding, dilation, *_ = VALID.numbers
    return {
        **{name: tensors[name] for name in NAMES},
        "bias": torch.zeros(6),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


def resized(t: Tensor, axis: int, by: int) -> Tensor:
    return t.new_zeros([n + by if i == axis % t.dim() else n for i, n in enumerate(t.shape)])


NOT_TENSORS = [1.0, "x", [[1.0]], (), object(), math.nan, b"", {}]
NOT_PAIRS = [0.5, "1", None, (1,), (1, 1, 1), [], ("a", 1), (1.0, 1), True, torch.ones(2), {1, 2}, math.inf]
NOT_IN_RANGE = [-1, (1, -1), (-(2**31), 1), 2**31, (1, 2**31), 2**63, 2**64, -(2**63) - 1, 10**30, (10**30, -(10**30))]
WRONG: dict[str, Any] = {
    "rank": lambda t, i: t[0] if i % 2 else t[None],
    "scalar": lambda t, i: t.flatten()[0] if i % 2 else t.reshape(1, -1),
    "size": lambda t, i: resized(t, i, 1),
    "empty": lambda t, i: resized(t, i, -t.shape[i % t.dim()]),
    "dtype": lambda t, i: t.to((torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8)[i % 5]),
    "device": lambda t, _: t.to("meta"),
    "sparse": lambda t, _: t.to_sparse(),
    "quantized": lambda t, _: torch.quantize_per_tensor(t.contiguous(), 0.1, 0, torch.quint8),
    "not a tensor": lambda _, i: NOT_TENSORS[i % len(NOT_TENSORS)],
}


@given(
    argument=st.sampled_from([*NAMES, "bias", "stride", "padding", "dilation"]),
    kind=st.sampled_from(list(WRONG)),
    which=st.integers(0, 99),
)
@fuzz
def test_a_wrong_call_raises_and_names_an_argument(argument: str, kind: str, which: int) -> None:
    arguments = valid_arguments()
    if isinstance(arguments[argument], Tensor):
        arguments[argument] = WRONG[kind](arguments[argument], which)
    else:
        wrong = (*NOT_PAIRS, *NOT_IN_RANGE, *((0,) if argument != "padding" else ()))
        arguments[argument] = wrong[which % len(wrong)]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r"^(input|offset|mask|weight|bias|stride|pad|dil)"):
        deform_conv2d(**arguments)


INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
PAIRS = st.lists(INTEGERS, min_size=2, max_size=2)


@given(stride=PAIRS, padding=PAIRS, dilation=PAIRS, groups=INTEGERS, deform_groups=INTEGERS)
@fuzz
def test_the_operator_refuses_numbers_that_do_not_fit(
    stride: list[int], padding: list[int], dilation: list[int], groups: int, deform_groups: int
) -> None:
    """As tensors stay, so would the output's size have to: next to nothing else fits."""
    tensors = VALID.tensors()
    arguments = [tensors[name] for name in NAMES]
    numbers = (stride, padding, dilation, groups, deform_groups)
    size = [0, 0]
    if min(stride) > 0:
        size = list(reference.output_size((6, 7), (3, 3), stride, padding, dilation))
    fits = size == [6, 7] and min(padding) >= 0 < min(dilation) and (groups, deform_groups) == (2, 2)
    if fits and max(*stride, *padding, *dilation) < 2**31:
        assert torch.ops.torchdcn.deform_conv2d(*arguments, *numbers).shape == (2, 6, 6, 7)
        return
    for operator, call in (
        (torch.ops.torchdcn.deform_conv2d, (*arguments, *numbers)),
        (torch.ops.torchdcn.deform_conv2d_backward, (tensors["grad_output"], *arguments, *numbers, [True] * 4)),
    ):
        with pytest.raises(ValueError, match=r"^(input|offset|weight|stride|padding|dilation): "):
            operator(*call)
