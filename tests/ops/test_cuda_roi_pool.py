"""RoI pooling's kernels on a GPU, wherever one is found."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_roi_pool

from .cases import assert_like
from .roi_cases import BOXES, NAMES, Case, each_case, gradients, ours

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def many_boxes(K: int = 200, height: float = 200.0, width: float = 336.0) -> Tensor:  # [K, 5], of two images
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(K, 2, generator=generator, dtype=torch.float64) * torch.tensor([width, height]) - 8
    size = torch.exp(3.2 * torch.rand(K, 2, generator=generator, dtype=torch.float64) + 1)
    return torch.cat([torch.arange(K)[:, None] % 2, low, low + size], 1).float().double()


LARGE = Case("256 channels", C=256, size=(50, 84), bins=(7, 7), spatial_scale=0.25, boxes=many_boxes())


@pytest.fixture(autouse=True)
def atomic(poison: None) -> None:
    """Atomic sums, unless a test wants otherwise."""
    assert poison is None
    torch.use_deterministic_algorithms(False)


def on_gpu(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.cuda() for t in tensors]


def moved(case: Case, tensors: list[Tensor | None]) -> Tensor:
    """The case on the device of its input."""
    input, offset, mask = tensors
    assert input is not None
    positions = input.dtype if input.dtype == torch.float64 else torch.float32
    return deform_roi_pool(
        input, case.rows().to(input.device, positions), case.bins, offset, mask,
        case.spatial_scale, case.sampling_ratio, case.gamma,
    )  # fmt: skip


def compare(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    tensors = case.tensors(dtype)
    exact = [None if t is None else t.double() for t in tensors]
    rounded = case if dtype == torch.float64 else replace(case, boxes=case.rows().float().double())
    cotangent = torch.randn(ours(rounded, exact).shape, dtype=torch.float64).to(dtype)
    output, found, _ = gradients(moved, case, on_gpu(tensors), cotangent.cuda())
    expected_output, expected, _ = gradients(ours, rounded, exact, cotangent.double())
    assert output.is_cuda
    assert_like(output.cpu(), expected_output, tolerance)
    for name, gradient in found.items():
        assert_like(gradient.cpu(), expected[name], tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_case
def test_output_and_gradients_equal_the_cpus(case: Case, dtype: torch.dtype) -> None:
    compare(case, dtype, DTYPES[dtype])


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_boxes_of_a_detector_equal_the_cpus(dtype: torch.dtype, sampling_ratio: int) -> None:
    compare(replace(LARGE, sampling_ratio=sampling_ratio), dtype, DTYPES[dtype])


@pytest.mark.parametrize("ratio", [3, 5, 7, 11])
def test_positions_are_rounded_as_on_the_cpu(ratio: int) -> None:
    """Samples that fall on the grid and on the map's border, but for rounding: another rounding is another cell."""
    boxes = [
        [0, 0.5 + i / 4, 0.5 + j / 4, 0.5 + i / 4 + ratio, 0.5 + j / 4 + 3 * ratio] for i in range(9) for j in (0, 2)
    ]
    case = Case(
        "",
        N=1,
        C=4,
        size=(20, 9),
        bins=(3, 1),
        spatial_scale=1.0,
        sampling_ratio=ratio,
        boxes=torch.tensor(boxes).double(),
    )
    tensors = case.tensors(torch.float32)
    assert tensors[1] is not None
    tensors[1].zero_()
    output, found, cotangent = gradients(moved, case, on_gpu(tensors))
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, case, tensors, cotangent.cpu())
    assert_like(output.cpu(), expected_output, 1e-6)
    for name, gradient in found.items():
        assert_like(gradient.cpu(), expected[name], 1e-5)


def test_deterministic_sums_are_the_same_bits_every_time() -> None:
    torch.use_deterministic_algorithms(True)
    tensors = on_gpu(LARGE.tensors(torch.float32))
    cotangent = torch.randn(200, 256, 7, 7, device="cuda")
    first = gradients(moved, LARGE, tensors, cotangent)[1]
    for _ in range(5):
        again = gradients(moved, LARGE, tensors, cotangent)[1]
        assert all(torch.equal(first[name], again[name]) for name in NAMES)
    torch.use_deterministic_algorithms(False)
    for name, gradient in gradients(moved, LARGE, tensors, cotangent)[1].items():
        assert_like(gradient, first[name], 1e-5)


def test_nan_and_infinite_offsets_keep_the_contract() -> None:
    case = replace(LARGE, C=19, boxes=BOXES[:4])
    tensors = on_gpu(case.tensors(torch.float32))
    offset = tensors[1]
    assert offset is not None
    offset[1, 0, 2, 1], offset[2, 1, 3, 3], offset[3, 0, 5, 6] = math.nan, math.inf, -1e30
    output, found, cotangent = gradients(moved, case, tensors)
    used = torch.zeros_like(output, dtype=torch.bool)
    used[1, :, 2, 1] = True
    assert torch.equal(output.isnan(), used)
    with backend("reference"):
        expected_output, expected, _ = gradients(moved, case, tensors, cotangent)
    torch.testing.assert_close(output, expected_output, rtol=1e-4, atol=1e-4, equal_nan=True)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3, equal_nan=True)


def test_channels_last_stays_so() -> None:
    tensors = on_gpu(LARGE.tensors(torch.bfloat16))
    last = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in tensors]
    assert torch.equal(moved(LARGE, tensors), moved(LARGE, last))
    assert moved(LARGE, last).is_contiguous(memory_format=torch.channels_last)


def test_autotuning_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = on_gpu(LARGE.tensors(torch.float32))
    output, found, cotangent = gradients(moved, LARGE, tensors, torch.randn(200, 256, 7, 7, device="cuda"))
    monkeypatch.setenv("TORCHDCN_AUTOTUNE", "1")
    tuned_output, tuned, _ = gradients(moved, LARGE, tensors, cotangent)
    assert_like(tuned_output, output, 1e-5)
    for name in NAMES:
        assert_like(tuned[name], found[name], 1e-5)


def test_compiled_code_calls_the_kernels() -> None:
    tensors = on_gpu(LARGE.tensors(torch.float32))
    compiled = torch.compile(lambda *t: moved(LARGE, list(t)), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), moved(LARGE, tensors))


def test_an_nchw_input_takes_no_more_memory_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchdcn.ops.triton import run

    input, boxes = torch.rand(16, 64, 256, 256, device="cuda"), torch.zeros(4, 5, device="cuda")
    image = input.nbytes // 16
    monkeypatch.setattr(run, "COPIES", 2 * image)
    deform_roi_pool(input, boxes, 7)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    deform_roi_pool(input, boxes, 7)
    assert torch.cuda.max_memory_allocated() - before < 3 * image


def test_a_box_of_an_image_that_is_not_there_stops_the_device() -> None:
    """In a process of its own: no call to the device comes back after that."""
    code = (
        "import torch; from torchdcn.ops import deform_roi_pool as pool\n"
        "x, boxes = torch.rand(2, 4, 8, 8, device='cuda'), torch.tensor([[2.0, 0, 0, 4, 4]], device='cuda')\n"
        "pool(x, boxes, 2); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "assert" in done.stderr


def test_a_tensor_beyond_32_bits_of_index() -> None:
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of GPU memory")
    input = torch.zeros(1, 1, 47000, 47000, dtype=torch.float16, device="cuda")
    input[0, 0, -1, -1] = 3
    boxes = torch.tensor([[0, 46999.0, 46999.0, 47000.0, 47000.0]], device="cuda")
    assert float(deform_roi_pool(input, boxes, 1, sampling_ratio=1)) == 3
