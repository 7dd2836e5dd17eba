import time

import torch

from torchdcn.evaluation.speed import Shape, measure, operator_contenders, ratios


def test_median_leaves_out_the_first_round_and_the_odd_slow_one() -> None:
    calls = 0

    def slow_at_times() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.05 if calls in (1, 3) else 0.0)

    assert measure({"a": slow_at_times}, rounds=5)["a"] < 0.04
    assert calls == 6


def test_ratios_are_over_the_faster_dense_layout() -> None:
    found = ratios({"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0})
    assert found == {"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0}


def test_deformable_contenders_compute_the_same() -> None:
    contenders = operator_contenders(Shape(8, 5, 6, batch=2, deform_groups=2), training=False)
    outputs = {name: call() for name, call in contenders.items() if not name.startswith("dense")}
    first = outputs["torchvision"]
    assert len(outputs) == 3
    for output in outputs.values():
        torch.testing.assert_close(output, first, rtol=1e-4, atol=1e-5)


def test_training_contenders_give_every_gradient() -> None:
    contenders = operator_contenders(Shape(8, 5, 6), training=True)
    assert {name: len(call()) for name, call in contenders.items()} == {  # type: ignore[arg-type]
        "dense, contiguous": 2, "dense, channels-last": 2,
        "torchdcn, contiguous": 4, "torchdcn, channels-last": 4, "torchvision": 4,
    }  # fmt: skip
