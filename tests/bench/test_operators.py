import pytest
import torch

from torchdcn.bench.contenders import Shape
from torchdcn.bench.operators import Measurement, bench_operator, geometric_means, ratios

SHAPE = Shape(8, 5, 6)


def test_ratios_are_over_the_faster_dense_layout() -> None:
    found = ratios({"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0})
    assert found == {"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0}


def test_geometric_means_leave_out_who_missed_a_shape() -> None:
    def taken(**seconds: float) -> Measurement:
        return Measurement(SHAPE, False, "float32", "cpu", 1, {name: [one] for name, one in seconds.items()})

    found = geometric_means([taken(dense=1.0, ours=2.0, peer=9.0), taken(dense=2.0, ours=16.0)])
    assert found == pytest.approx({"dense": 1.0, "ours": 4.0})


def test_every_thread_count_shape_and_pass_is_measured_and_torch_left_as_it_was() -> None:
    before, steps = torch.get_num_threads(), []
    found = bench_operator(
        [SHAPE, Shape(4, 5, 6)], threads=[1, 2], rounds=2, peers=False, progress=lambda *counts: steps.append(counts)
    )
    assert [(m.threads, m.shape.channels, m.training) for m in found] == [
        (threads, channels, training) for threads in (1, 2) for channels in (8, 4) for training in (False, True)
    ]
    assert all(len(times) == 2 for m in found for times in m.times.values())
    assert steps == [(done, 8) for done in range(8)]
    assert torch.get_num_threads() == before
