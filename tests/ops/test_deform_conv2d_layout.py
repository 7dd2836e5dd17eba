"""Any strides in; out, those of the input's layout, and exactly the ones that the fake implementation promises."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torchdcn.ops import backend, deform_conv2d
from torchdcn.ops.strides import layout

from .cases import BACKENDS, each_backend

last, dense = torch.channels_last, torch.contiguous_format


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def padded(t: Tensor) -> Tensor:  # of the same shape, twice as large in every direction
    return t.new_zeros([2 * n for n in t.shape])


STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.clone(),
    "channels last": lambda t: t.clone(memory_format=last),
    "told to be channels last": lambda t: t.contiguous(memory_format=last),  # which leaves one channel as it is
    "sliced": lambda t: padded(t)[: t.shape[0], : t.shape[1], : t.shape[2], : t.shape[3]].copy_(t),
    "every other": lambda t: padded(t)[::2, ::2, ::2, ::2].copy_(t),
    "channels last, sliced": lambda t: (
        padded(t).contiguous(memory_format=last)[: t.shape[0], : t.shape[1], : t.shape[2], : t.shape[3]].copy_(t)
    ),
    "channels last, every other": lambda t: padded(t).contiguous(memory_format=last)[::2, ::2, ::2, ::2].copy_(t),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "image [H, W, C]": lambda t: t.permute(0, 2, 3, 1).clone(memory_format=dense).permute(0, 3, 1, 2),
    "flipped": lambda t: t.flip(2, 3).flip(2, 3),
    "at an odd address": lambda t: t.new_zeros(t.numel() + 1)[1:].view(t.shape).copy_(t),
}
each_storage = pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
SIZES = [(2, 4, 5, 6), (1, 4, 5, 6), (2, 1, 5, 6), (1, 1, 5, 6), (2, 4, 1, 1), (1, 1, 1, 1), (2, 4, 1, 6), (0, 4, 5, 6)]


def arguments(N: int, C: int, H: int, W: int, Co: int = 3) -> list[Tensor]:
    """Input, offset, mask, weight of a 3x3 kernel."""
    return [randn(N, C, H, W), randn(N, 18, H, W), randn(N, 9, H, W).sigmoid(), randn(Co, C, 3, 3)]


def run(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The output and all gradients, as the operators give them."""
    numbers = ([1, 1], [1, 1], [1, 1], 1, 1)
    output = torch.ops.torchdcn.deform_conv2d(*tensors, *numbers)
    gradient = torch.ones_like(output)
    return output, *torch.ops.torchdcn.deform_conv2d_backward(gradient, *tensors, *numbers, [True] * 4)


def strides_of(tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [t.stride() for t in tensors]


@pytest.mark.parametrize("size", SIZES, ids=str)
@each_storage
def test_fakes_and_meta_tensors_promise_the_real_strides(
    stored: Callable[[Tensor], Tensor], size: tuple[int, int, int, int]
) -> None:
    plain = arguments(*size)
    tensors = [stored(t) for t in plain]
    with FakeTensorMode() as mode:
        promised = run([mode.from_tensor(t) for t in tensors])
    meta = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors]
    assert strides_of(promised) == strides_of(run(meta))
    expected = run(plain)
    for name in BACKENDS:
        with backend(name):
            found = run(tensors)
        assert strides_of(found) == strides_of(promised)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each_backend
@pytest.mark.parametrize("size", [(2, 4, 5, 6), (1, 4, 5, 6), (2, 1, 5, 6), (2, 4, 1, 6), (0, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("name_of_layout", ["channels last", "channels last, sliced", "image [H, W, C]"])
def test_channels_last_stays_so_in_output_and_gradients(
    name_of_layout: str, size: tuple[int, int, int, int], name: str
) -> None:
    tensors = [STORED[name_of_layout](t) for t in arguments(*size, Co=5)]
    tensors[2] = tensors[2].contiguous()  # each gradient follows its own tensor
    with backend(name):
        output, *gradients = run(tensors)
    assert output.stride() == torch.empty(output.shape, memory_format=last).stride()
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert layout(gradient) == layout(tensor)
        assert gradient.is_contiguous(memory_format=layout(tensor))


def test_an_image_permuted_from_rows_of_pixels_is_channels_last() -> None:
    image = torch.rand(5, 6, 4).permute(2, 0, 1)[None]
    assert layout(image) == last
    assert layout(torch.rand(1, 4, 5, 6)) == layout(torch.rand(1, 1, 1, 1)) == torch.contiguous_format
    assert layout(torch.rand(2, 4, 1, 1)) == torch.contiguous_format
    assert layout(torch.rand(2, 4, 1, 1).contiguous(memory_format=last)) == torch.contiguous_format  # no copy is made
    assert layout(torch.rand(2, 4, 1, 1).clone(memory_format=last)) == last
    assert layout(torch.rand(2, 3)) == torch.contiguous_format


@each_backend
@pytest.mark.parametrize("which", range(4), ids=["input", "offset", "mask", "weight"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_a_tensor_expanded_along_any_axes_is_read_right(which: int, axes: tuple[int, ...], name: str) -> None:
    tensors = arguments(2, 4, 5, 6)
    small = tensors[which][tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(4))]
    tensors[which] = small.expand(tensors[which].shape)
    with backend(name):
        found, expected = run(tensors), run([t.clone() for t in tensors])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_reach_expanded_and_overlapping_leaves() -> None:
    base = randn(1, 1, 5, 6).requires_grad_()
    _, offset, mask, weight = arguments(2, 4, 5, 6)
    output = deform_conv2d(base.expand(2, 4, 5, 6), offset, weight, padding=1, mask=mask)
    (found,) = torch.autograd.grad(output.sum(), base)
    copy = base.detach().expand(2, 4, 5, 6).clone().requires_grad_()
    (expected,) = torch.autograd.grad(deform_conv2d(copy, offset, weight, padding=1, mask=mask).sum(), copy)
    torch.testing.assert_close(found, expected.sum((0, 1), keepdim=True))


@each_backend
def test_layouts_mix_freely(name: str) -> None:
    plain = arguments(2, 4, 5, 6)
    with backend(name):
        expected = run(plain)
        for kinds in product(("contiguous", "channels last", "every other"), repeat=4):
            found = run([STORED[kind](t) for kind, t in zip(kinds, plain, strict=True)])
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
