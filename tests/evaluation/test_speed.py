import time

import pytest
import torch

from torchdcn.evaluation import contenders
from torchdcn.evaluation.speed import (
    RESNET50,
    SCALING,
    VARIED,
    Measurement,
    Shape,
    bench_operator,
    geometric_means,
    machine,
    measure,
    measure_times,
    operator_contenders,
    ratios,
)

SHAPE = Shape(8, 5, 6)


def test_median_leaves_out_the_first_round_and_the_odd_slow_one() -> None:
    calls = 0

    def slow_at_times() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.05 if calls in (1, 3) else 0.0)

    assert measure({"a": slow_at_times}, rounds=5)["a"] < 0.04
    assert calls == 6


def test_a_slow_contender_takes_part_in_three_rounds_spread_over_the_run() -> None:
    order: list[str] = []

    def fast() -> None:
        order.append("f")

    def slow() -> None:
        order.append("s")
        time.sleep(0.11)

    times = measure_times({"fast": fast, "slow": slow}, rounds=7)
    assert (len(times["fast"]), len(times["slow"])) == (7, 3)
    assert "".join(order) == "fs" + "fs" + "fff" + "s" + "fff" + "s"


def test_a_device_is_waited_for_before_and_after_every_call() -> None:
    order: list[str] = []
    measure_times({"a": lambda: order.append("call")}, rounds=1, wait=lambda: order.append("wait"))
    assert order == ["wait", "call", "wait"] * 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rounds: expected at least 1, got 0"):
        measure({}, rounds=0)


def test_ratios_are_over_the_faster_dense_layout() -> None:
    found = ratios({"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0})
    assert found == {"dense, contiguous": 2.0, "dense, channels-last": 1.0, "torchdcn, contiguous": 3.0}


def test_geometric_means_leave_out_who_missed_a_shape() -> None:
    def taken(**seconds: float) -> Measurement:
        return Measurement(SHAPE, False, "float32", "cpu", 1, {name: [one] for name, one in seconds.items()})

    found = geometric_means([taken(dense=1.0, ours=2.0, peer=9.0), taken(dense=2.0, ours=16.0)])
    assert found == pytest.approx({"dense": 1.0, "ours": 4.0})


@pytest.mark.parametrize(
    "shape",
    [
        Shape(8, 5, 6, batch=2, deform_groups=2),
        Shape(8, 9, 7, groups=4, kernel=(5, 3), stride=(2, 1), dilation=(1, 2)),
        Shape(6, 5, 6, groups=6, kernel=(1, 1)),
    ],
    ids=str,
)
def test_deformable_contenders_compute_the_same(shape: Shape) -> None:
    pytest.importorskip("onnxruntime")
    lineup = operator_contenders(shape, training=False)
    assert lineup.absent == {}
    outputs = {name: call() for name, call in lineup.calls.items()}
    first = outputs.pop("torchvision")
    assert {output.shape for name, output in outputs.items() if name.startswith("dense")} == {first.shape}
    assert set(outputs) >= {"torchdcn, contiguous", "torchdcn, channels-last", "onnxruntime"}
    for name in ("torchdcn, contiguous", "torchdcn, channels-last"):
        torch.testing.assert_close(outputs[name], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(outputs["onnxruntime"][0]), first, rtol=1e-4, atol=1e-5)


def test_training_contenders_give_every_gradient() -> None:
    lineup = operator_contenders(SHAPE, training=True)
    assert {name: len(call()) for name, call in lineup.calls.items()} == {
        "dense, contiguous": 2, "dense, channels-last": 2,
        "torchdcn, contiguous": 4, "torchdcn, channels-last": 4, "torchvision": 4,
    }  # fmt: skip


def test_layouts_are_what_the_names_say_forward_and_backward() -> None:
    for training in (False, True):
        lineup = operator_contenders(SHAPE, training, peers=False)
        for name, call in lineup.calls.items():
            result = call()[0] if training else call()  # the gradient of the input, or the output
            assert result.is_contiguous(memory_format=contenders.LAYOUTS[name.split(", ")[1]]), name


def test_sixteen_bits_run_beside_float32_and_without_the_peers_that_lack_them() -> None:
    lineup = operator_contenders(SHAPE, training=False, dtype=torch.bfloat16)
    assert {name: call().dtype for name, call in lineup.calls.items()} == {
        "dense, contiguous": torch.bfloat16, "dense, channels-last": torch.bfloat16,
        "torchdcn, contiguous": torch.bfloat16, "torchdcn, channels-last": torch.bfloat16,
        "torchdcn in float32, channels-last": torch.float32,
    }  # fmt: skip
    assert lineup.absent["torchvision"] == "it has no kernel for bfloat16 on cpu"
    assert "onnxruntime" in lineup.absent


def test_a_peer_that_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    lineup = operator_contenders(SHAPE, training=False)
    assert "onnxruntime" not in lineup.calls
    assert "pip install onnx onnxruntime" in lineup.absent["onnxruntime"]


def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    ours = contenders._ours
    monkeypatch.setattr(contenders, "_ours", lambda shape: lambda *tensors: 1.01 * ours(shape)(*tensors))
    lineup = operator_contenders(SHAPE, training=False)
    assert "onnxruntime" not in lineup.calls
    assert "differs from ours by 9.9e-03" in lineup.absent["onnxruntime"]


def test_only_the_contenders_asked_for_are_made() -> None:
    lineup = operator_contenders(SHAPE, training=False, names=["dense, contiguous"])
    assert (list(lineup.calls), lineup.absent) == (["dense, contiguous"], {})


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"groups": 3}, r"groups: expected a divisor of the 8 channels, got 3"),
        ({"deform_groups": 5}, r"deform_groups: expected a divisor of the 8 channels, got 5"),
        ({"stride": (0, 1)}, r"stride: expected at least 1, got \(0, 1\)"),
        ({"height": 1, "kernel": (2, 2)}, r"kernel: 2x2 leaves nothing of a map of 1x6"),
    ],
)
def test_a_shape_that_is_none_is_refused(numbers: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape(**{"channels": 8, "height": 5, "width": 6, **numbers})


def test_names_of_shapes_tell_what_is_not_usual() -> None:
    assert str(SHAPE) == "8 @ 5x6"
    odd = Shape(8, 5, 6, batch=2, deform_groups=4, groups=2, kernel=(5, 3), stride=(2, 2), dilation=(1, 2))
    assert str(odd) == "2 x 8 @ 5x6, 5x3, stride 2, dilation (1, 2), 2 groups, 4 deform groups"
    assert str(Shape(8, 5, 6, groups=8)) == "8 @ 5x6, depthwise"


@pytest.mark.parametrize("suite", [RESNET50, VARIED, SCALING], ids=["resnet50", "shapes", "scaling"])
def test_names_of_shapes_are_unique_in_a_suite_and_fit_its_table(suite: tuple[Shape, ...]) -> None:
    names = {str(shape) for shape in suite}
    assert len(names) == len(suite)
    assert max(map(len, names)) <= 30


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


def test_machine_names_the_processor_and_what_the_kernels_run_on() -> None:
    found = machine()
    assert found["CPU"]
    assert int(found["cores"]) >= 1
    assert found["instruction set"].split()[0] in ("portable", "avx2", "avx512", "avx512_bf16", "none:")
    assert found["torch"] == torch.__version__
