"""Which dtypes go together, and what autocast makes of them: the rule of torch.nn.functional.conv2d."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv2d

from torchdcn.nn import ModulatedDeformConv2dPack
from torchdcn.ops import backend, deform_conv2d

from .cases import assert_like, each_backend

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIXTEEN = (torch.bfloat16, torch.float16)
BIAS = torch.arange(3.0)


def tensors(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, offset, weight, mask."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    return draw(2, 4, 6, 7), 2 * draw(2, 18, 6, 7), draw(3, 4, 3, 3), draw(2, 9, 6, 7).sigmoid()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_mixture_of_dtypes_is_right_or_named(dtype: torch.dtype) -> None:
    input, offset, weight, mask = tensors()
    for of_offset, of_mask, of_weight in product((*FLOATS, torch.int32), repeat=3):
        beside = (dtype, torch.float32) if dtype in SIXTEEN else (dtype,)
        wrong = [
            name
            for name, fits in (
                ("offset", of_offset in beside),
                ("mask", of_mask in beside),
                ("weight", of_weight == dtype),
            )
            if not fits
        ]
        arguments = input.to(dtype), offset.to(of_offset), weight.to(of_weight)
        if not wrong:
            assert deform_conv2d(*arguments, padding=1, mask=mask.to(of_mask)).dtype == dtype
            continue
        with pytest.raises(TypeError, match=rf"^{wrong[0]}: expected torch\..* beside an input of {dtype}, got torch"):
            deform_conv2d(*arguments, padding=1, mask=mask.to(of_mask))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_an_input_that_is_no_float_is_named(dtype: torch.dtype) -> None:
    converted = [t.to(dtype) for t in tensors()]
    with pytest.raises(TypeError, match=f"^input: expected float64, float32, bfloat16 or float16, got {dtype}"):
        deform_conv2d(*converted[:3], padding=1, mask=converted[3])


@each_backend
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_float32_positions_keep_their_digits_in_the_kernel(dtype: torch.dtype, name: str) -> None:
    """From pixel 0 the sample is moved by 900.37, which bfloat16 would round to 900 and float16 to 900.5."""
    step = torch.zeros(1, 1, 1, 1024, dtype=dtype)
    step[..., 901:] = 1  # so that between pixels 900 and 901 the value is the position's fraction
    offset = torch.zeros(1, 2, 1, 1024)
    offset[0, 1, 0, 0] = 900.37
    with backend(name):
        found = deform_conv2d(step, offset, torch.ones(1, 1, 1, 1, dtype=dtype))
    assert abs(float(found[0, 0, 0, 0]) - 0.37) < 2e-3


@contextmanager
def autocast(device: str, dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast, which refuses CUDA where there is none."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_autocast_follows_the_rule_of_conv2d(dtype: torch.dtype, device: str) -> None:
    """On fake tensors, which follow the same dispatch; there need be no GPU."""
    with FakeTensorMode(), autocast(device, dtype):
        input, offset, weight, mask = (t.to(device) for t in tensors())
        bias = torch.zeros(3, device=device)
        for of_input, of_weight in product(FLOATS, FLOATS):
            x, w, b = input.to(of_input), weight.to(of_weight), bias.to(of_weight)
            try:
                expected = conv2d(x, w, b, padding=1).dtype
            except RuntimeError:  # float64 is left alone, and goes with nothing else
                with pytest.raises(TypeError, match=r"^(weight|offset|bias): expected "):
                    deform_conv2d(x, offset, w, b, padding=1, mask=mask)
                continue
            positions = torch.float64 if of_input == torch.float64 else torch.float32
            assert deform_conv2d(x, offset.to(positions), w, b, padding=1, mask=mask.to(positions)).dtype == expected


@each_backend
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_autocast_casts_the_features_and_leaves_positions_and_mask(dtype: torch.dtype, name: str) -> None:
    input, offset, weight, mask = tensors()
    with backend(name):
        by_hand = deform_conv2d(input.to(dtype), offset, weight.to(dtype), BIAS.to(dtype), padding=1, mask=mask)
        rounded = deform_conv2d(
            input.to(dtype), offset.to(dtype), weight.to(dtype), BIAS.to(dtype), padding=1, mask=mask
        )
        with torch.autocast("cpu", dtype):
            found = deform_conv2d(input, offset, weight, BIAS, padding=1, mask=mask)
            with torch.autocast("cpu", enabled=False):
                plain = deform_conv2d(input, offset, weight, BIAS, padding=1, mask=mask)
    assert torch.equal(found, by_hand)
    assert not torch.equal(found, rounded)
    assert plain.dtype == torch.float32
    assert_like(found.float(), plain, 2e-2)


def test_autocast_leaves_a_float64_call_as_it_is() -> None:
    input, offset, weight, mask = (t.double() for t in tensors())
    plain = deform_conv2d(input, offset, weight, BIAS.double(), padding=1, mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = deform_conv2d(input, offset, weight, BIAS.double(), padding=1, mask=mask)
    assert torch.equal(found, plain)


def test_gradients_through_autocast_come_back_in_the_leaves_dtypes() -> None:
    leaves = [t.requires_grad_() for t in tensors()]
    input, offset, weight, mask = leaves
    plain = torch.autograd.grad(deform_conv2d(input, offset, weight, padding=1, mask=mask).sum(), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        output = deform_conv2d(input, offset, weight, padding=1, mask=mask)
    for found, expected in zip(torch.autograd.grad(output.sum(), leaves), plain, strict=True):
        assert found.dtype == torch.float32
        assert_like(found, expected, 2e-2)


def test_a_pack_runs_under_autocast_and_trains() -> None:
    torch.manual_seed(0)
    pack, x = ModulatedDeformConv2dPack(4, 6, 3, padding=1), torch.rand(2, 4, 6, 7)
    torch.nn.init.normal_(pack.conv_offset.weight, std=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        output = pack(x)
    assert output.dtype == torch.bfloat16
    assert_like(output.float(), pack(x), 2e-2)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in pack.parameters())
