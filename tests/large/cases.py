"""Calls whose tensors have more than 2^31 elements; run as `python cases.py CASE BACKEND`, each in its own process.

What is asked of a huge tensor is known from a small call: the same samples, the same neighbours, other distances. Large
inputs are zeros that the system keeps no memory for, but for a few; large outputs and gradients do take theirs. Offsets
are sixteenths of a pixel, which float32 holds at any place of these maps.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_conv2d, deform_roi_pool

if TYPE_CHECKING:
    from collections.abc import Callable

BEYOND = 2**31
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the largest element
PLANE, BATCH = 23169, 8191  # steps between samples: a map of 2^31 pixels, or eight that have as many
SMALL = 16


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """On a CPU memory that is taken only where it is written to."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    stored = np.zeros(int(np.prod(shape)), {2: np.uint16, 4: np.uint32}[dtype.itemsize])
    return torch.from_numpy(stored).view(dtype).reshape(shape)


def sixteenths(*shape: int) -> Tensor:
    return torch.randint(-24, 25, shape) / 16


def assert_like(found: Tensor, expected: Tensor, tolerance: float = 0) -> None:
    """Within a part of the largest element."""
    found, expected = found.detach(), expected.detach().double()
    allowed = max(tolerance, CLOSE[found.dtype]) * float(expected.abs().max())
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=allowed)


def assert_nothing_else(gradient: Tensor, expected: Tensor) -> None:
    """A huge gradient has no other elements than those that were compared; a tiny one may have become 0."""
    assert gradient.numel() > BEYOND
    assert 0 < int(gradient.count_nonzero()) <= int(expected.count_nonzero())


def places(step: int, size: int) -> Tensor:
    """Where the small map's rows (or columns) lie in the large one: as near to the samples at 0, step, 2 step."""
    small = torch.arange(size)
    block = (small + SMALL // 2) // SMALL
    return block * step + small - block * SMALL


def enlarged(small: Tensor, step: int, device: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The map with its samples a step apart, and how to read the same pixels again."""
    N, C, height, width = small.shape
    rows, columns = places(step, height).to(device), places(step, width).to(device)
    large = zeros((N, C, 2 * step + height - 2 * SMALL, 2 * step + width - 2 * SMALL), small.dtype, device)
    assert large.numel() > BEYOND
    large[:, :, rows[:, None], columns] = small.to(device)
    return large, lambda tensor: tensor[:, :, rows[:, None], columns].cpu()


def convolution(device: str, N: int, step: int, dtype: torch.dtype, by_input: bool) -> None:
    small = torch.randn(N, 1, 2 * SMALL + 4, 2 * SMALL + 3).to(dtype)
    Co = 1 if dtype == torch.float32 else 2  # with one channel everything is channels-last, and no kernel copies it
    offset, mask, weight = sixteenths(N, 8, 3, 3), torch.rand(N, 4, 3, 3), torch.randn(Co, 1, 2, 2).to(dtype)
    cotangent = torch.randn(N, Co, 3, 3).to(dtype)

    def run(input: Tensor, stride: int) -> list[Tensor]:
        kind = input.dtype if input.dtype == torch.float64 else torch.float32
        others = [offset.to(kind), mask.to(kind), weight.to(input.dtype)]
        leaves = [t.to(input.device).requires_grad_() for t in others]
        input = input.requires_grad_(by_input)
        output = deform_conv2d(input, leaves[0], leaves[2], stride=stride, dilation=(3, 2), mask=leaves[1])
        wanted = [*leaves, input] if by_input else leaves
        return [output, *torch.autograd.grad(output, wanted, cotangent.to(output))]

    large, same_pixels = enlarged(small, step, device)
    found = run(large, step)
    with backend("reference"):
        expected = run(small.double(), SMALL)
    if by_input:
        compared = same_pixels(found[4])
        assert_like(compared, expected[4])
        assert_nothing_else(found[4], expected[4])
    for a, b in zip(found[:4], expected[:4], strict=True):
        assert_like(a, b)


def convolution_forward(device: str) -> None:
    with torch.no_grad():
        small = torch.randn(1, 1, 2 * SMALL + 4, 2 * SMALL + 3).bfloat16()
        large, _ = enlarged(small, PLANE, device)
        offset, weight = sixteenths(1, 8, 3, 3), torch.randn(2, 1, 2, 2).bfloat16()
        found = deform_conv2d(large, offset.to(device), weight.to(device), stride=PLANE, dilation=(3, 2))
        with backend("reference"):
            exact = small.double(), offset.double(), weight.double()
            assert_like(found, deform_conv2d(*exact, stride=SMALL, dilation=(3, 2)))


def convolution_offset(device: str, by_offset: bool) -> None:
    """Offsets of 49 taps for 22 million outputs, not zero at the last few."""
    size, kernel, region, crop = 4682, 7, 6, 40
    input, weight = torch.randn(1, 1, size, size).bfloat16(), torch.randn(1, 1, kernel, kernel).bfloat16()
    moved = sixteenths(1, 98, region, region)
    offset = zeros((1, 98, size, size), torch.bfloat16, device)
    assert offset.numel() > BEYOND
    offset[:, :, -region:, -region:] = moved.to(offset)
    small = torch.zeros(1, 98, crop, crop, dtype=torch.float64)
    small[:, :, -region:, -region:] = moved
    found = deform_conv2d(input.to(device), offset.requires_grad_(by_offset), weight.to(device), padding=3)
    near = input[:, :, -crop:, -crop:].double()
    with backend("reference"):
        expected = deform_conv2d(near, small.requires_grad_(), weight.double(), padding=3)
    last = (..., slice(-region, None), slice(-region, None))
    assert_like(found[last], expected[last].detach())
    for rows in (slice(0, 64), slice(2000, 2064), slice(-64, -8)):
        plain = torch.nn.functional.conv2d(input.float(), weight.float(), padding=3)[:, :, rows]
        assert_like(found[:, :, rows], plain)
    if by_offset:
        cotangent = zeros((1, 1, size, size), torch.bfloat16, device)
        cotangent[last] = 1
        of_small = torch.zeros_like(expected)
        of_small[last] = 1
        (gradient,) = torch.autograd.grad(found, offset, cotangent)
        (known,) = torch.autograd.grad(expected, small, of_small)
        assert_like(gradient[last], known[last])
        assert_nothing_else(gradient, known)


def convolution_output(device: str) -> None:
    """256 outputs of one input channel, on eight images."""
    N, Co, size = 8, 256, 1025
    input = torch.randn(N, 1, size, size).bfloat16().to(device).requires_grad_()
    weight = torch.randn(Co, 1, 1, 1).bfloat16().to(device).requires_grad_()
    offset = zeros((N, 2, size, size), torch.bfloat16, device)
    output = deform_conv2d(input, offset, weight)
    assert output.numel() > BEYOND
    for n, o in ((0, 0), (3, 100), (7, 0), (7, 255)):
        expected = (input[n, 0].float() * weight[o].float().reshape(1, 1)).detach().bfloat16()
        assert torch.equal(output[n, o], expected)
    cotangent = zeros(tuple(output.shape), torch.bfloat16, device)
    chosen = ((0, 0, 3, 4), (7, 255, size - 1, size - 1))
    for place in chosen:
        cotangent[place] = 2
    by_input, by_weight = torch.autograd.grad(output, (input, weight), cotangent)
    assert int(by_input.count_nonzero()) == int(by_weight.count_nonzero()) == len(chosen)
    for n, o, y, x in chosen:
        assert by_input[n, 0, y, x] == 2 * weight[o]
        assert by_weight[o] == 2 * input[n, 0, y, x]


def convolution_weight(device: str) -> None:
    """65537 outputs of 32768 input channels, at one position."""
    input = torch.randn(1, 32768, 1, 1, device=device)
    weight = zeros((65537, 32768, 1, 1), torch.float32, device)
    assert weight.numel() > BEYOND
    values = torch.randn(2, 32768, device=device)
    weight[0, :, 0, 0], weight[-1, :, 0, 0] = values
    output = deform_conv2d(input, torch.zeros(1, 2, 1, 1, device=device), weight).flatten().cpu()
    expected = (values.double() @ input.flatten().double()).cpu()
    torch.testing.assert_close(output[[0, -1]].double(), expected, rtol=1e-4, atol=1e-2)
    assert not output[1:-1].any()


def pooling(device: str, N: int, step: int, dtype: torch.dtype, by_input: bool) -> None:
    """Boxes in the last corner of each map, which a crop of 64 pixels has too."""
    crop, K = 64, 3 * N
    small = torch.randn(N, 1, crop, crop).to(dtype)
    corners = torch.randint(28, 60, (K, 2)) / 2  # no sample leaves the crop where the map goes on
    box = torch.cat([corners, corners + torch.randint(4, 34, (K, 2))], 1)
    offset, mask = torch.randint(-4, 5, (K, 2, 2, 2)) / 2, torch.rand(K, 1, 2, 2)
    cotangent = torch.randn(K, 1, 2, 2).to(dtype)
    large = zeros((N, 1, 2 * step + 4, 2 * step + 3), dtype, device)
    assert large.numel() > BEYOND
    large[..., -crop:, -crop:] = small.to(device)

    def run(input: Tensor, ratio: int) -> list[Tensor]:
        kind = input.dtype if input.dtype == torch.float64 else torch.float32
        shift = torch.tensor([input.shape[3] - crop, input.shape[2] - crop] * 2)
        rows = torch.cat([torch.arange(K)[:, None] % N, box + shift], 1).to(kind).to(input.device)
        leaves = [t.to(kind).to(input.device).requires_grad_() for t in (offset, mask)]
        input = input.requires_grad_(by_input)
        output = deform_roi_pool(input, rows, 2, *leaves, sampling_ratio=ratio, gamma=0.125)
        wanted = [*leaves, input] if by_input else leaves
        return [output.detach(), *torch.autograd.grad(output, wanted, cotangent.to(output))]

    for ratio in (2,) if by_input else (2, 0):
        found = run(large, ratio)
        with backend("reference"):
            expected = run(small.double(), ratio)
        if by_input:
            assert_like(found[3][..., -crop:, -crop:], expected[3])
            assert_nothing_else(found[3], expected[3])
        for a, b in zip(found[:3], expected[:3], strict=True):
            assert_like(a, b, 0 if ratio else 1e-2)  # a fifth of a bin is no sixteenth


def last_bins(box: Tensor, bins: int, few: int) -> Tensor:
    """The box of the last few bins of a box along both axes."""
    part = (box[3:] - box[1:3]) * (bins - few) / bins
    return torch.cat([box[:1], box[1:3] + part, box[3:]])


def pooling_output(device: str) -> None:
    """512 x 512 bins of 256 channels, for 33 boxes of 8 pixels."""
    K, C, bins, few = 33, 256, 512, 8
    input = torch.randn(1, C, 16, 16).bfloat16().to(device).requires_grad_()
    boxes = torch.cat([torch.zeros(K, 1), torch.arange(K)[:, None] / 8 + torch.tensor([[1, 2, 9, 10]])], 1)
    output = deform_roi_pool(input, boxes.to(device), bins, sampling_ratio=1)
    assert output.numel() > BEYOND
    cotangent = zeros(tuple(output.shape), torch.bfloat16, device)
    cotangent[-1, :, -few:, -few:] = 1
    (gradient,) = torch.autograd.grad(output, input, cotangent)
    exact = input.detach().cpu().double().requires_grad_()
    with backend("reference"):
        for k in (0, 16, K - 1):
            of_box = last_bins(boxes[k], bins, few)[None].double()
            expected = deform_roi_pool(exact, of_box, few, sampling_ratio=1)
            assert_like(output[k : k + 1, :, -few:, -few:], expected.detach())
    assert_like(gradient, torch.autograd.grad(expected.sum(), exact)[0])


def pooling_offset(device: str) -> None:
    """Offsets of 4096 x 4096 bins, for 65 boxes of 8 pixels; not zero at the last few."""
    K, bins, few = 65, 4096, 8
    input = torch.randn(1, 1, 16, 16).bfloat16()
    boxes = torch.cat([torch.zeros(K, 1), torch.arange(K)[:, None] / 32 + torch.tensor([[1, 2, 9, 10]])], 1)
    offset = zeros((K, 2, bins, bins), torch.float32, device)
    assert offset.numel() > BEYOND
    moved = sixteenths(1, 2, few, few)
    offset[-1:, :, -few:, -few:] = moved.to(device)
    output = deform_roi_pool(input.to(device), boxes.to(device), bins, offset, sampling_ratio=1, gamma=0.125)
    with backend("reference"):
        for k, shift in ((0, torch.zeros_like(moved)), (K - 1, moved)):
            of_box = last_bins(boxes[k], bins, few)[None].double()
            numbers = {"sampling_ratio": 1, "gamma": 0.125 * bins / few}  # the unit is the box's size
            expected = deform_roi_pool(input.double(), of_box, few, shift.double(), **numbers)
            assert_like(output[k : k + 1, :, -few:, -few:], expected)


CASES: dict[str, Callable[[str], None]] = {
    "convolution: input, one map": lambda device: convolution(device, 1, PLANE, torch.float32, by_input=False),
    "convolution: input of 16 bits, forward": convolution_forward,
    "convolution: input and its gradient, a batch": lambda d: convolution(d, 8, BATCH, torch.bfloat16, by_input=True),
    "convolution: input and its gradient, one map": lambda d: convolution(d, 1, PLANE, torch.float32, by_input=True),
    "convolution: offset": lambda device: convolution_offset(device, by_offset=False),
    "convolution: offset and its gradient": lambda device: convolution_offset(device, by_offset=True),
    "convolution: output and its gradient": convolution_output,
    "convolution: weight": convolution_weight,
    "pooling: input, one map": lambda device: pooling(device, 1, PLANE, torch.float32, by_input=False),
    "pooling: input and its gradient, a batch": lambda d: pooling(d, 8, BATCH, torch.bfloat16, by_input=True),
    "pooling: input and its gradient, one map": lambda d: pooling(d, 1, PLANE, torch.float32, by_input=True),
    "pooling: output and its gradient": pooling_output,
    "pooling: offset": pooling_offset,
}


def main(name: str, chosen: str) -> None:
    """Runs one case, and prints what it took."""
    torch.manual_seed(0)
    started = time.monotonic()
    if chosen == "cuda":
        CASES[name]("cuda")
    else:
        with backend(chosen):
            CASES[name]("cpu")
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak": peak}))  # noqa: T201  # read by the test


if __name__ == "__main__":
    main(*sys.argv[1:])
