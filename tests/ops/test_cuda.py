"""The kernels on a GPU, wherever one is found."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torchdcn.ops import available_backends, backend, deform_conv2d
from torchdcn.ops.backends import backend_for

from .cases import CASES, NAMES, Case, assert_like, each_case, gradients, ours

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

LARGE = Case("256 channels", N=2, C=256, Co=256, size=(50, 84))
DTYPES = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}


@pytest.fixture(autouse=True)
def ieee(poison: None) -> None:
    """Float32 without TF32, and atomic sums, unless a test wants otherwise."""
    assert poison is None
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def on_gpu(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.cuda() for t in tensors]


def compare(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    tensors = case.tensors(dtype)
    exact = [None if t is None else t.double() for t in tensors]
    cotangent = torch.randn(ours(case, exact).shape, dtype=torch.float64).to(dtype)
    output, found, _ = gradients(ours, case, on_gpu(tensors), cotangent.cuda())
    expected_output, expected, _ = gradients(ours, case, exact, cotangent.double())
    assert output.is_cuda
    assert_like(output.cpu(), expected_output, tolerance)
    for name, gradient in found.items():
        assert_like(gradient.cpu(), expected[name], tolerance)


def test_triton_serves_cuda() -> None:
    assert available_backends()["triton"] == ""
    assert backend_for(torch.device("cuda", 0)) == "triton"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_case
def test_output_and_gradients_equal_the_cpus(case: Case, dtype: torch.dtype) -> None:
    compare(case, dtype, DTYPES[dtype])


@pytest.mark.parametrize("deform_groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_layer_of_resnet_50_equals_the_cpus(dtype: torch.dtype, deform_groups: int) -> None:
    compare(replace(LARGE, deform_groups=deform_groups), dtype, DTYPES[dtype])


def test_tf32_is_used_where_torch_allows_it_to_convolutions() -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    compare(LARGE, torch.float32, 3e-3)
    with pytest.raises(AssertionError):  # or TF32 wasn't used
        compare(LARGE, torch.float32, 1e-6)


def test_deterministic_sums_are_the_same_bits_every_time() -> None:
    torch.use_deterministic_algorithms(True)
    case = replace(LARGE, C=64, Co=64, spread=0.5)
    tensors = on_gpu(case.tensors(torch.float32))
    cotangent = torch.randn(2, 64, 50, 84, device="cuda")
    first = gradients(ours, case, tensors, cotangent)[1]
    for _ in range(5):
        again = gradients(ours, case, tensors, cotangent)[1]
        assert all(torch.equal(first[name], again[name]) for name in NAMES)


def test_nan_and_infinite_offsets_keep_the_contract() -> None:
    case = replace(CASES[0], N=1)
    tensors = on_gpu(case.tensors(torch.float32))
    offset = tensors[1]
    assert offset is not None
    offset[0, 4, 3, 4] = float("nan")
    offset[0, 6, 5, 6] = float("inf")
    offset[0, 8, 5, 7] = -1e30
    output = ours(case, tensors)
    used = torch.zeros_like(output, dtype=torch.bool)
    used[:, :, 3, 4] = True
    assert torch.equal(output.isnan(), used)
    with backend("reference"):
        torch.testing.assert_close(output, ours(case, tensors), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_channels_last_stays_so() -> None:
    tensors = on_gpu(LARGE.tensors(torch.bfloat16))
    last = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in tensors]
    assert torch.equal(ours(LARGE, tensors), ours(LARGE, last))
    assert ours(LARGE, last).is_contiguous(memory_format=torch.channels_last)


def test_autotuning_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(LARGE, N=1, C=64, Co=64)
    tensors = on_gpu(case.tensors(torch.float32))
    output, found, cotangent = gradients(ours, case, tensors, torch.randn(1, 64, 50, 84, device="cuda"))
    monkeypatch.setenv("TORCHDCN_AUTOTUNE", "1")
    tuned_output, tuned, _ = gradients(ours, case, tensors, cotangent)
    assert_like(tuned_output, output, 1e-5)
    for name in NAMES:
        assert_like(tuned[name], found[name], 1e-5)


def test_compiled_code_calls_the_kernels() -> None:
    tensors = on_gpu(CASES[0].tensors(torch.float32))
    compiled = torch.compile(lambda *t: ours(CASES[0], list(t)), fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), ours(CASES[0], tensors))


def test_a_tensor_beyond_32_bits_of_index() -> None:
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of GPU memory")
    input = torch.zeros(1, 1, 47000, 47000, dtype=torch.float16, device="cuda")
    input[0, 0, -1, -1] = 3
    offset = torch.zeros(1, 2, 23500, 23500, dtype=torch.float16, device="cuda")
    offset[0, :, -1, -1] = 1
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float16, device="cuda")
    output = deform_conv2d(input, offset, weight, stride=2)
    assert float(output[0, 0, -1, -1]) == 3
    assert int(output.count_nonzero()) == 1
