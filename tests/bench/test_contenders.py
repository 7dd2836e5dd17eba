import pytest
import torch

from torchdcn.bench import contenders
from torchdcn.bench.contenders import RESNET50, SCALING, VARIED, Shape, operator_contenders

SHAPE = Shape(8, 5, 6)


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
