import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from torchdcn.ops import available_backends, backend, backends, deform_conv2d, instruction_set

ARGUMENTS = (torch.zeros(1, 2, 4, 4), torch.zeros(1, 18, 2, 2), torch.zeros(2, 2, 3, 3))


def test_the_kernels_are_there() -> None:
    assert available_backends()["cpp"] == ""
    assert backends.backend_for(torch.device("cpu")) == "cpp"


def test_the_instruction_set_is_the_one_asked_for() -> None:
    asked = os.environ.get("TORCHDCN_ISA")
    assert instruction_set() in backends.INSTRUCTION_SETS
    if asked:  # as the processes are that skip_without() lets pass
        assert instruction_set() == asked


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDCN_ISA", "AVX2")
    expected = "TORCHDCN_ISA: expected one of portable, avx2, avx512, avx512_bf16, got 'AVX2'"
    assert backends._load_cpp.__wrapped__() == expected


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="name: expected one of 'reference', 'cpp', 'triton', got 'cuda'"):
        backend("cuda").__enter__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here Triton has a device")
def test_a_backend_that_is_missing_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"backend 'triton' can't be used here: .* set TRITON_INTERPRET=1"):
        backend("triton").__enter__()


def test_triton_serves_cuda_and_no_other_device() -> None:
    pytest.importorskip("triton")
    assert backends.backend_for(torch.device("cuda")) == "triton"
    with backends.using("triton"), pytest.raises(RuntimeError, match="serves CUDA tensors only, got a tensor on cpu"):
        backends.backend_for(torch.device("cpu"))


def test_without_triton_the_reference_serves_cuda_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdcn.ops.triton", None)
    reason = backends._load_triton.__wrapped__()
    assert "pip install triton" in reason
    monkeypatch.setattr(backends, "_load_triton", lambda: reason)
    backends._triton_serves.cache_clear()
    backends._warn_once.cache_clear()
    device = torch.device("cuda")
    with pytest.warns(UserWarning, match="slow reference implementation on cuda: Triton does not import"):
        assert backends.backend_for(device) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.backend_for(device) == "reference"
    backends._triton_serves.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here capabilities are real")
@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "reference"), ((8, 0), "triton"), ((12, 1), "triton")])
def test_gpus_before_ampere_run_the_reference(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(backends, "_load_triton", lambda: "")
    monkeypatch.setattr(backends, "_warn_once", lambda *_: None)
    backends._triton_serves.cache_clear()
    assert backends.backend_for(torch.device("cuda", 0)) == expected
    backends._triton_serves.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here capabilities are real")
def test_triton_is_refused_on_a_gpu_before_ampere_rather_than_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(backends, "_interpreted", lambda: False)
    backends._triton_serves.cache_clear()
    try:
        assert available_backends()["triton"] == "the Triton kernels need compute capability 8.0, cuda:0 has 7.5"
        with pytest.raises(RuntimeError, match="backend 'triton' can't be used here: the Triton kernels need compute"):
            backend("triton").__enter__()
        with backends.using("triton"), pytest.raises(RuntimeError, match=r"capability 8\.0, cuda:0 has 7\.5"):
            backends.backend_for(torch.device("cuda", 0))
    finally:
        backends._triton_serves.cache_clear()


def test_importing_torchdcn_imports_none_of_the_triton_kernels() -> None:
    code = "import sys, torchdcn; print([name for name in sys.modules if 'torchdcn' in name and 'triton' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_importing_torchdcn_without_triton_prints_nothing() -> None:
    """Torch's counter of FLOPs would warn that there is none."""
    code = "import sys; sys.modules['triton'] = None; import torch, torchdcn, logging; logging.warning('later')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "WARNING:root:later\n")


def test_cpp_serves_no_other_device() -> None:
    with backend("cpp"), pytest.raises(RuntimeError, match="serves CPU tensors only"):
        backends.backend_for(torch.device("cuda"))


def _fail() -> None:
    with backend("cpp"):
        assert backends.backend_for(torch.device("cpu")) == "cpp"
        raise ZeroDivisionError


def test_the_choice_ends_with_its_block_even_after_an_error() -> None:
    with backend("reference"):
        assert backends.backend_for(torch.device("cpu")) == "reference"
        with pytest.raises(ZeroDivisionError):
            _fail()
        assert backends.backend_for(torch.device("cpu")) == "reference"
    assert backends.backend_for(torch.device("cpu")) == "cpp"


def test_without_an_extension_the_reference_serves_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "ops" / "backends.py"))
    reason = backends._load_cpp.__wrapped__()
    assert "was not built" in reason
    assert "make clean setup" in reason
    monkeypatch.setattr(backends, "_load_cpp", lambda: reason)
    backends._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="slow reference implementation .* was not built"):
        deform_conv2d(*ARGUMENTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert deform_conv2d(*ARGUMENTS).shape == (1, 2, 2, 2)
    assert available_backends()["cpp"] == reason
