"""How much memory the launchers of the Triton kernels take, and that what they take in turns adds up to the same.

test_triton.py runs this in a process that has TRITON_INTERPRET=1.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchdcn.ops import backend
from torchdcn.ops.deform_conv2d import triton_launch as launch
from torchdcn.ops.deform_roi_pool import triton_launch as launch_roi_pool
from torchdcn.ops.triton import run

from . import cases, roi_cases
from .cases import assert_like

CONV = cases.Case("", N=3, C=5, Co=3, size=(4, 5), kernel=(1, 2), padding=(0, 1))
ROWS = torch.tensor([[n, 1.0, 2.0, 4.0 + n, 3.0] for n in (2, 0, 1)], dtype=torch.float64)  # of images in no order
ROI = roi_cases.Case("", N=3, C=5, size=(4, 5), bins=(1, 2), spatial_scale=1.0, sampling_ratio=1, boxes=ROWS)


class Scratch(TorchDispatchMode):
    """The most bytes that tensors made within took at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:
                ref = StorageWeakRef(t.untyped_storage())
                self.live[ref.cdata] = ref, t.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@pytest.fixture(autouse=True)
def atomic(poison: None) -> None:
    """After `poison`, which wants deterministic algorithms: here they decide how grad_input is summed."""
    assert poison is None
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that would run: they are left out, for what they compute is tested elsewhere."""
    names: list[str] = []
    monkeypatch.setattr(run.Launch, "run", lambda self: names.append(self.kernel.__name__))
    return names


LAST = torch.channels_last
NUMBERS = ([1, 1], [1, 1], [1, 1], 1, 1)
N, C, SIDE, BINS = 12, 16, 32, 7
IMAGE = C * SIDE * SIDE * 4  # bytes of an image, input or output


def convolution(kind: torch.memory_format, backward: bool) -> int:
    features, offset = torch.rand(N, C, SIDE, SIDE).contiguous(memory_format=kind), torch.rand(N, 18, SIDE, SIDE)
    mask, weight = torch.rand(N, 9, SIDE, SIDE), torch.rand(C, C, 3, 3)
    results = [torch.empty_like(t) for t in (features, offset, mask, weight)]
    with Scratch() as scratch:
        if backward:
            launch.backward(features, features, offset, mask, weight, *NUMBERS, *results)
        else:
            launch.forward(features, offset, mask, weight, *NUMBERS, results[0])
    return scratch.peak - 4 * weight.nbytes * backward  # sums of the weight's gradient, of any number of images


def pooling(kind: torch.memory_format, backward: bool) -> int:
    features, boxes = torch.rand(N, C, SIDE, SIDE).contiguous(memory_format=kind), torch.zeros(3, 5)
    offset, mask = torch.rand(3, 2, BINS, BINS), torch.rand(3, 1, BINS, BINS)
    pooled = torch.rand(3, C, BINS, BINS).contiguous(memory_format=kind)
    results = [torch.empty_like(t) for t in (features, offset, mask)]
    with Scratch() as scratch:
        if backward:
            launch_roi_pool.backward(pooled, features, boxes, offset, mask, [BINS] * 2, 1.0, 2, 0.1, *results)
        else:
            launch_roi_pool.forward(features, boxes, offset, mask, [BINS] * 2, 1.0, 2, 0.1, pooled)
    return scratch.peak


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("operator", [convolution, pooling])
def test_scratch_stays_below_its_bound_whatever_the_batch(
    operator: Any, backward: bool, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(deterministic)
    kernels = launched(monkeypatch)
    whole = operator(torch.contiguous_format, backward)
    each = len(kernels)
    assert whole >= N * IMAGE  # or there would be nothing to bound
    bound = 7 * IMAGE
    monkeypatch.setattr(run, "COPIES", bound)
    small = 40 * 1024  # what grows with no image: the weight, checks of the boxes, their gradients' largest
    assert operator(torch.contiguous_format, backward) <= bound + small
    assert len(kernels) - each > each  # in several turns


@pytest.mark.parametrize("operator", [convolution, pooling])
def test_a_channels_last_input_is_neither_copied_nor_taken_in_turns(
    operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = launched(monkeypatch)
    monkeypatch.setattr(run, "COPIES", 1)
    assert operator(LAST, False) < IMAGE
    assert len(kernels) == 1


def test_images_taken_in_turns_give_the_convolution_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for copies in (2**28, 1):
        monkeypatch.setattr(run, "COPIES", copies)
        with backend("triton"):
            output, found, _ = cases.gradients(cases.ours, CONV, CONV.tensors())
        results.append([output, *found.values()])
    for at_once, in_turns in zip(*results, strict=True):
        assert_like(in_turns, at_once, 1e-11)


def test_images_taken_in_turns_give_the_pooling_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for copies in (2**28, 1):
        monkeypatch.setattr(run, "COPIES", copies)
        with backend("triton"):
            output, found, _ = roi_cases.gradients(roi_cases.ours, ROI, ROI.tensors())
        results.append([output, *found.values()])
    with backend("reference"):
        output, found, _ = roi_cases.gradients(roi_cases.ours, ROI, ROI.tensors())
    for at_once, in_turns, expected in zip(*results, [output, *found.values()], strict=True):
        assert_like(in_turns, at_once, 1e-11)
        assert_like(in_turns, expected, 1e-11)


def test_the_largest_images_go_one_by_one() -> None:
    assert [(s.start, s.stop) for s in run.chunks(3, run.COPIES + 1)] == [(0, 1), (1, 2), (2, 3)]
    assert [(s.start, s.stop) for s in run.chunks(5, run.COPIES // 2)] == [(0, 2), (2, 4), (4, 5)]
    assert [(s.start, s.stop) for s in run.chunks(5, 0)] == [(0, 5)]
