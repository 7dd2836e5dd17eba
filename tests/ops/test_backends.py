import os
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
    if asked in ("avx2", "portable"):  # as test_deform_conv2d's subprocesses do
        assert instruction_set() == asked


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDCN_ISA", "AVX2")
    assert backends._load_cpp.__wrapped__() == "TORCHDCN_ISA: expected one of portable, avx2, avx512, got 'AVX2'"


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="name: expected one of 'reference', 'cpp', 'triton', got 'cuda'"):
        backend("cuda").__enter__()


def test_a_backend_that_is_missing_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"backend 'triton' can't be used here: .*no Triton kernels"):
        backend("triton").__enter__()


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
