from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import torchdcn
from torchdcn.interop import export_onnx
from torchdcn.nn import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack
from torchdcn.ops import backend, deform_conv2d

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

onnx = pytest.importorskip("onnx", reason="ONNX is an extra: pip install onnx onnxscript onnxruntime")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is an extra: pip install onnx onnxscript onnxruntime"
)
pytest.importorskip("onnxscript", reason="onnxscript is an extra: pip install onnx onnxscript onnxruntime")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def run(path: Path, *tensors: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, feeds)), strict=True))


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def moving(pack: DeformConv2dPack) -> DeformConv2dPack:
    nn.init.normal_(pack.conv_offset.weight, std=0.2)
    return pack


# ONNX's own test vectors


def vectors() -> list[Any]:
    from onnx.backend.test.case.node import _NodeTestCases as cases
    from onnx.backend.test.case.node import deformconv  # noqa: F401  # adds its cases to them

    return [case for case in cases if case.model is None or case.model.graph.node[0].op_type == "DeformConv"]


def tensors_and_numbers(case: Any) -> tuple[list[np.ndarray | None], dict[str, Any]]:
    inputs, _ = case.data_sets[0]
    node = case.model.graph.node[0]
    given = iter(inputs)
    tensors = [next(given) if name else None for name in node.input] + [None] * (5 - len(node.input))
    return tensors, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize("case", vectors(), ids=lambda case: case.name)
def test_onnx_own_vectors_pass_through_the_operator(case: Any, name: str) -> None:
    arrays, numbers = tensors_and_numbers(case)
    x, weight, offset, bias, mask = [None if a is None else torch.from_numpy(a) for a in arrays]
    pads = numbers.get("pads", [0, 0, 0, 0])
    assert pads[:2] == pads[2:]
    with backend(name):
        found = deform_conv2d(
            x, offset, weight, bias, tuple(numbers.get("strides", (1, 1))), tuple(pads[:2]),
            tuple(numbers.get("dilations", (1, 1))), mask,
        )  # fmt: skip
    [expected] = case.data_sets[0][1]
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_onnx_has_vectors() -> None:
    assert len(vectors()) >= 4  # an empty list would make the test above pass


# Layers


LAYERS = {
    "modulated": (lambda: moving(ModulatedDeformConv2dPack(8, 6, 3, stride=2, padding=1, deform_groups=2)), (8,)),
    "v1": (lambda: moving(DeformConv2dPack(8, 6, (3, 1), dilation=2, groups=2, bias=False)), (8,)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_pack_agrees_with_onnxruntime_at_any_size_and_batch(layer: str, tmp_path: Path) -> None:
    make, (channels,) = LAYERS[layer]
    pack, path = make(), tmp_path / "pack.onnx"
    export_onnx(pack, path, torch.rand(1, channels, 12, 14))
    for size in ((1, channels, 12, 14), (3, channels, 9, 17)):
        x = torch.randn(size)
        torch.testing.assert_close(run(path, x)["output"], pack(x), atol=1e-4, rtol=0)


def test_a_bare_layer_takes_offset_and_mask_by_their_names(tmp_path: Path) -> None:
    layer, path = DeformConv2d(4, 6, 3, stride=2, padding=1), tmp_path / "layer.onnx"

    def example(N: int, H: int, W: int) -> tuple[Tensor, ...]:
        Ho, Wo = (H + 1) // 2, (W + 1) // 2
        return torch.rand(N, 4, H, W), torch.randn(N, 18, Ho, Wo), torch.rand(N, 9, Ho, Wo)

    export_onnx(layer, path, example(1, 16, 20))
    assert [i.name for i in onnx.load(path).graph.input] == ["input", "offset", "mask"]
    for tensors in (example(1, 16, 20), example(2, 9, 7)):
        torch.testing.assert_close(run(path, *tensors)["output"], layer(*tensors), atol=1e-4, rtol=0)


def test_a_file_holds_one_standard_graph_and_nothing_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "pack.onnx"
    with backend("reference"):  # which would dissolve the operator into its parts
        export_onnx(ModulatedDeformConv2dPack(8, 6, 3, padding=1), path, torch.rand(1, 8, 12, 14))
    model = onnx.load(path)
    assert [(o.domain, o.version >= 19) for o in model.opset_import] == [("", True)]
    assert {node.domain for node in model.graph.node} == {""}
    assert [node.op_type for node in model.graph.node].count("DeformConv") == 1
    assert shapes(model.graph.input) == {"input": ["batch", 8, "height", "width"]}
    assert shapes(model.graph.output) == {"output": ["batch", 6, "height", "width"]}
    assert model.producer_name == "torchdcn"
    assert str(torchdcn.__file__).rsplit("/", 1)[0].encode() not in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["pack.onnx"]


def test_sizes_stay_fixed_where_they_should(tmp_path: Path) -> None:
    path = tmp_path / "pack.onnx"
    export_onnx(DeformConv2dPack(4, 6, 1), path, torch.rand(1, 4, 1, 5), dynamic=False)
    assert shapes(onnx.load(path).graph.input) == {"input": [1, 4, 1, 5]}


def test_a_module_stays_as_it_is_and_is_exported_in_eval_mode(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    layer = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.9), DeformConv2dPack(4, 4, 3, padding=1))
    layer[1].eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = torch.randn(2, 4, 8, 9)
    export_onnx(layer, tmp_path / "net.onnx", x)
    assert [module.training for module in layer.children()] == [True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    torch.testing.assert_close(run(tmp_path / "net.onnx", x)["output"], layer.eval()(x), atol=1e-4, rtol=0)
    assert capfd.readouterr() == ("", "")


def test_several_results_keep_their_names(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pack = DeformConv2dPack(4, 4, 3)

        def forward(self, picture: Tensor) -> dict[str, Tensor]:
            return {"moved": self.pack(picture), "offset": self.pack.conv_offset(picture)}

    export_onnx(Pair(), tmp_path / "pair.onnx", torch.rand(1, 4, 8, 9))
    graph = onnx.load(tmp_path / "pair.onnx").graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["picture", "moved", "offset"]


# Backbone and detector


@pytest.fixture(scope="module")
def detector() -> Any:
    """A small Mask R-CNN whose random weights move samples and find things."""
    torch.manual_seed(0)
    model = torchdcn.models.create_model(
        "mask_rcnn_r18_fpn_mdconv_c3-c5", num_classes=3, norm="frozen_bn", deform_stages=("c5",), fpn_channels=32,
        box_head_channels=64, mask_head_channels=(16,), min_size=96, max_size=160, rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=40, box_detections_per_img=20,
    )  # fmt: skip
    for stage in ("layer1", "layer2", "layer3", "layer4"):  # one block each: tracing takes its time
        setattr(model.backbone.body, stage, getattr(model.backbone.body, stage)[:1])
    for module in model.backbone.modules():
        if isinstance(module, DeformConv2dPack):
            nn.init.normal_(module.conv_offset.weight, std=0.02)
    heads = model.roi_heads
    for layer, std in (
        (model.rpn.head.cls_logits, 0.5), (model.rpn.head.bbox_pred, 0.1), (heads.box_predictor.cls_score, 1.5),
        (heads.box_predictor.bbox_pred, 0.3), (heads.mask_predictor.mask_fcn_logits, 0.5),
    ):  # fmt: skip
        nn.init.normal_(layer.weight, std=std)
    model.class_names = ("cat", "dog", "bär")
    model.category_ids = (1, 7, 9)
    return model.eval()


def picture(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def test_a_backbone_gives_its_five_maps_at_any_size_and_batch(detector: Any, tmp_path: Path) -> None:
    path = tmp_path / "backbone.onnx"
    export_onnx(detector.backbone, path, torch.rand(1, 3, 64, 96))
    for size in ((1, 3, 64, 96), (2, 3, 33, 70)):
        x = torch.rand(size)
        found, expected = run(path, x), detector.backbone(x)
        assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
        for map_, wanted in zip(found.values(), expected.values(), strict=True):
            torch.testing.assert_close(map_, wanted, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def exported(detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    export_onnx(detector, path, torch.rand(3, 64, 96))
    return path


@pytest.mark.parametrize("size", [(96, 128), (150, 75), (20, 300)], ids=["as it is", "smaller", "long"])
def test_a_detector_finds_in_onnxruntime_what_it_finds_in_torch(detector: Any, exported: Path, size: Any) -> None:
    image = picture(*size)
    found = run(exported, image)
    with torch.no_grad():
        [expected] = detector([image])
    assert len(expected["boxes"]) > 5
    assert list(found) == ["boxes", "scores", "labels", "masks"]
    tolerances = {"boxes": 1e-2, "scores": 1e-4, "labels": 0, "masks": 1e-2}
    for name, tolerance in tolerances.items():
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=0)


def test_a_detector_may_find_nothing(detector: Any, exported: Path) -> None:
    image = torch.full((3, 60, 60), torch.nan)  # no score is more than the threshold
    with torch.no_grad():
        assert len(detector([image])[0]["boxes"]) == 0
    assert [list(t.shape) for t in run(exported, image).values()] == [[0, 4], [0], [0], [0, 1, 60, 60]]


def test_opcheck_of_the_suppression_that_is_traced() -> None:
    corners = torch.rand(2, 9, 2)
    boxes, scores = torch.cat([corners, corners + 0.5], dim=2), torch.rand(2, 9) - 0.3
    import_module("torchdcn.export.onnx_trace")  # which registers it
    torch.library.opcheck(torch.ops.torchdcn._nms_by_set.default, (boxes, scores, 0.5, 3))


def test_a_detector_file_says_what_it_is(exported: Path) -> None:
    model = onnx.load(exported)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["model"] == "mask_rcnn_r18_fpn_mdconv_c3-c5"
    assert json.loads(metadata["class_names"]) == ["cat", "dog", "bär"]
    assert json.loads(metadata["category_ids"]) == [1, 7, 9]
    assert (model.producer_name, model.producer_version) == ("torchdcn", torchdcn.__version__)
    assert shapes(model.graph.input) == {"image": [3, "height", "width"]}
    assert shapes(model.graph.output)["masks"] == ["detections", 1, "height", "width"]


# Wrong calls


def layer() -> DeformConv2dPack:
    return DeformConv2dPack(4, 4, 3)


IMAGE = torch.rand(1, 4, 9, 9)
WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no module": ("mask_rcnn_r18_fpn", IMAGE, TypeError, "model_or_module: expected an nn.Module, got str"),
    "a Detector": (SimpleNamespace(model=nn.ReLU()), IMAGE, TypeError, "give its .model"),
    "float64": (layer().double(), IMAGE.double(), TypeError, "model_or_module: expected float32, .* got torch.float64"),
    "two dtypes": (layer(), IMAGE.double(), ValueError, "example: DeformConv2dPack does not take it"),
    "no tensor": (layer(), [[1.0]], TypeError, "example: expected a tensor or a tuple of tensors, got list"),
    "channels": (layer(), torch.rand(1, 5, 9, 9), ValueError, "example: DeformConv2dPack does not take it: "),
    "dimensions": (layer(), IMAGE[0], ValueError, r"example: .* got shape \[4, 9, 9\]"),
    "a row": (DeformConv2dPack(4, 4, 1), IMAGE[:, :, :1], ValueError, "example: a height or width of 1"),
    "empty": (layer(), IMAGE[:0], ValueError, "example: expected a tensor with something in it"),
    "too many": (layer(), (IMAGE, IMAGE), ValueError, "example: DeformConv2dPack takes 1 tensor, got 2"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_call_is_named_and_leaves_no_file(wrong: str, tmp_path: Path) -> None:
    model, example, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        export_onnx(model, tmp_path / "out.onnx", example)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (torch.rand(1, 3, 64, 64), ValueError, r"example: expected one image \[3, H, W\] .* \[1, 3, 64, 64\]"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), TypeError, "example: .* in 0..1, got torch.uint8"),
        ((torch.rand(3, 64, 64),) * 2, ValueError, "example: expected one image .* got 2 tensors"),
    ],
)
def test_a_detector_names_a_wrong_example(
    detector: Any, example: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_onnx(detector, tmp_path / "out.onnx", example)


def test_a_detector_of_another_make_is_refused(tmp_path: Path) -> None:
    other = nn.Module()
    other.roi_heads = nn.Identity()
    with pytest.raises(TypeError, match=r"model_or_module: expected a detector of torchdcn\.models\.create_model"):
        export_onnx(other, tmp_path / "out.onnx", torch.rand(3, 9, 9))


@pytest.mark.parametrize("name", ["faster_rcnn_r18_fpn_mdpool", "mask_rcnn_r18_fpn_dpool"])
def test_deformable_pooling_is_refused_by_its_place(name: str, tmp_path: Path) -> None:
    model = torchdcn.models.create_model(name, pool_channels=8)
    with pytest.raises(ValueError, match=r"no operator for \w+Pack \(roi_heads\.box_roi_pool\.layers\.0\)"):
        export_onnx(model, tmp_path / "model.onnx", torch.rand(3, 32, 32))
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_the_graph_takes_the_same_maps_as_a_detector_without_a_pyramid() -> None:
    from torchdcn.export.onnx_detector import DetectorGraph

    model = torchdcn.models.create_model(
        "faster_rcnn_r50_dcnv2", pool=None, conv=None, fpn_channels=8, box_head_channels=8, num_classes=2,
        min_size=32, max_size=64, rpn_pre_nms_top_n_test=20, box_score_thresh=0.0,
    ).eval()  # fmt: skip
    image = torch.rand(3, 32, 32)
    [expected] = model([image])
    batch, _ = model.transform([image])
    _, scores, _ = DetectorGraph(model)(batch.tensors, torch.full((4,), 32.0), torch.ones(4), *torch.zeros(2, 32))
    torch.testing.assert_close(scores, expected["scores"], atol=1e-5, rtol=1e-5)


def test_more_weights_than_a_file_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("torchdcn.export.onnx"), "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"model_or_module: .* GB of weights are more than the 2 GB of one ONNX file"):
        export_onnx(layer(), tmp_path / "out.onnx", IMAGE)


def test_paths_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, error in (("a.pt", ValueError), ("none/a.onnx", FileNotFoundError), ("folder.onnx", IsADirectoryError)):
        with pytest.raises(error, match="path: "):
            export_onnx(layer(), tmp_path / name, torch.rand(1, 4, 9, 9))


def test_a_failure_leaves_an_older_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.onnx"
    path.write_text("older")

    def refuse(*_: Any, **__: Any) -> None:
        raise onnx.checker.ValidationError("not a graph")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError):
        export_onnx(layer(), path, torch.rand(1, 4, 9, 9))
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert path.read_text() == "older"


def test_what_torch_cannot_trace_is_said_in_one_line(tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError, match="model_or_module: torch could not export Untraceable: ") as caught:
        export_onnx(Untraceable(), tmp_path / "out.onnx", torch.rand(1, 4, 9, 9))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"needs onnxscript, .* pip install onnx onnxscript"):
        export_onnx(layer(), tmp_path / "out.onnx", torch.rand(1, 4, 9, 9))
