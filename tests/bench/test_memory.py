import pytest

from torchdcn.bench import memory
from torchdcn.bench.contenders import Shape
from torchdcn.bench.memory import Job, can_measure, extra_memory

needs_linux = pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
SHAPE = Shape(8, 5, 6)


IMAGE = Shape(64, 160, 160)  # 6.6 MB
JOBS = [
    Job("torchdcn, contiguous", IMAGE, training=False),
    Job("torchdcn, channels-last", IMAGE, training=False),
    Job("torchvision", SHAPE, training=False, dtype="bfloat16"),
    Job("torchdcn, contiguous", SHAPE, training=True),
]


@needs_linux
def test_counts_what_a_call_takes_and_gives_back_but_not_what_it_returns() -> None:
    """Ours copies one contiguous image, and nothing of a channels-last one; torchvision has no kernel for bfloat16."""
    done: list[tuple[int, int]] = []
    copied, plain, absent, small = extra_memory(JOBS, 1, progress=lambda *counts: done.append(counts))
    assert copied is not None
    assert plain is not None
    assert plain < 2e6
    assert 6e6 < copied - plain < 9e6
    assert absent is None
    assert small is not None
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_figures_where_the_system_can_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "can_measure", lambda _: False)
    assert extra_memory([Job("dense, contiguous", SHAPE, False)], 1) == [None]


@needs_linux
def test_a_process_that_fails_is_a_warning_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "__name__", "no_such_module")
    with pytest.warns(UserWarning, match="memory isn't measured.*no_such_module"):
        assert extra_memory([Job("dense, contiguous", SHAPE, False)], 1) == [None]
