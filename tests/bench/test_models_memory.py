from __future__ import annotations

import pytest

from torchdcn.bench import models_memory
from torchdcn.bench.detectors import Contender, build_detector
from torchdcn.bench.memory import can_measure
from torchdcn.bench.models_memory import training_memory

SIZE = (64, 96)
MODEL = "faster_rcnn_r18_fpn"


@pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
def test_training_memory_counts_weights_gradients_and_momentum() -> None:
    weights = sum(p.numel() for p in build_detector(Contender(MODEL), SIZE).parameters()) * 4
    found = training_memory(Contender(MODEL), SIZE, batch=1)
    assert found is not None
    assert 2.9 * weights < found < 8 * weights


@pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
def test_a_process_that_fails_is_a_warning_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_memory, "__name__", "no_such_module")
    with pytest.warns(UserWarning, match="memory isn't measured.*no_such_module"):
        assert training_memory(Contender(MODEL), SIZE) is None
