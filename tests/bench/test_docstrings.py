import doctest
import importlib

import pytest

MODULES = ("contenders", "detectors", "flops", "models", "operators", "parts", "predictions", "timing")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"torchdcn.bench.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
