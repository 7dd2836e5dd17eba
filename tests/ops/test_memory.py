"""Memory beyond inputs, outputs and gradients: a little for each thread, and the packed weights."""

from dataclasses import replace

import pytest

from torchdcn.bench.contenders import TORCHVISION, Shape
from torchdcn.bench.memory import Job, can_measure, extra_memory
from torchdcn.ops import available_backends

pytestmark = [
    pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak"),
    pytest.mark.skipif(available_backends()["cpp"] != "", reason="the C++ kernels are not built"),
]

THREADS = 2
MB = 10**6
A_THREAD = 2 * MB  # its tile, its stack, its heap
SLACK = 3 * MB  # huge pages, and threads that do or don't come to work in so short a call

BASE = Shape(64, 64, 96)
LARGER = {
    "base": BASE,
    "batch": replace(BASE, batch=6),
    "map": Shape(64, 160, 240),
    "taps": replace(BASE, kernel=(7, 7)),
}
LAST, CONTIGUOUS = "torchdcn, channels-last", "torchdcn, contiguous"
JOBS = {
    **{(LAST, name, t, "float32"): Job(LAST, shape, t) for name, shape in LARGER.items() for t in (False, True)},
    **{(CONTIGUOUS, n, t, "float32"): Job(CONTIGUOUS, LARGER[n], t) for n in ("base", "batch") for t in (False, True)},
    **{(LAST, n, t, "bfloat16"): Job(LAST, LARGER[n], t, "bfloat16") for n in ("base", "batch") for t in (False, True)},
    (TORCHVISION, "base", False, "float32"): Job(TORCHVISION, BASE, training=False),
}
each_pass = pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])


@pytest.fixture(scope="module")
def extra() -> dict[tuple[str, str, bool, str], int]:
    found = extra_memory(list(JOBS.values()), THREADS)
    return {key: figure for key, figure in zip(JOBS, found, strict=True) if figure is not None}


def packed_weights(shape: Shape, training: bool) -> int:
    """In float32; backward has them transposed, and the sums of the weight's gradient."""
    return shape.channels**2 * shape.kernel[0] * shape.kernel[1] * 4 * (2 if training else 1)


def image(shape: Shape) -> int:
    """One image's features in float32; input and output have the same shape here."""
    return shape.channels * shape.height * shape.width * 4


def test_the_measurement_sees_a_column_buffer(extra: dict) -> None:
    assert extra[TORCHVISION, "base", False, "float32"] > 9 * image(BASE)


@each_pass
@pytest.mark.parametrize("name", LARGER)
def test_a_few_megabytes_a_thread_beyond_the_packed_weights(extra: dict, name: str, training: bool) -> None:
    allowed = THREADS * A_THREAD + packed_weights(LARGER[name], training)
    assert extra[LAST, name, training, "float32"] < allowed


@each_pass
@pytest.mark.parametrize("name", ["batch", "map", "taps"])
def test_does_not_grow_with(extra: dict, name: str, training: bool) -> None:
    """Growing with it would be several images at least: the batch has six times, the map 6 times as much."""
    assert image(LARGER["map"]) - image(BASE) > 2 * SLACK
    weights = packed_weights(LARGER[name], training) - packed_weights(BASE, training)
    growth = extra[LAST, name, training, "float32"] - extra[LAST, "base", training, "float32"]
    assert growth < SLACK + weights


@each_pass
@pytest.mark.parametrize("name", ["base", "batch"])
def test_contiguous_features_are_copied_an_image_at_a_time(extra: dict, name: str, training: bool) -> None:
    copies = 3 if training else 1  # backward: input, and the gradients of input and output
    beyond = extra[CONTIGUOUS, name, training, "float32"] - copies * image(BASE)
    assert beyond < THREADS * A_THREAD + packed_weights(BASE, training)


@each_pass
def test_half_precision_is_widened_an_image_at_a_time_and_only_backward(extra: dict, training: bool) -> None:
    for name in ("base", "batch"):
        beyond = extra[LAST, name, training, "bfloat16"] - (3 * image(BASE) if training else 0)
        assert beyond < THREADS * A_THREAD + packed_weights(BASE, training)
