from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from torchdcn.models import create_model
from torchdcn.models.weights import save_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

onnx = pytest.importorskip("onnx", reason="ONNX is an extra: pip install onnx onnxscript onnxruntime")
onnxruntime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is an extra: pip install onnx onnxscript onnxruntime"
)
pytest.importorskip("onnxscript", reason="onnxscript is an extra: pip install onnx onnxscript onnxruntime")

VERB = ("export",)
MODEL = "faster_rcnn_r18_fpn_mdconv_c3-c5"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "norm": "frozen_bn", "deform_stages": ("c5",), "fpn_channels": 32, "box_head_channels": 32, "min_size": 64,
        "rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 10,
    }  # fmt: skip
    model = create_model(MODEL, num_classes=2, **small)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=1.0)
    model.class_names = ("cat", "dog")
    save_weights(model, path)
    return path


def test_a_detector_becomes_a_file_that_onnxruntime_runs(run: Run, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "detector.onnx"
    code, said, complained = run(out, "--model", MODEL, "--weights", weights, "--size", "64x96", "--min-size", "32")
    assert (code, complained) == (0, "")
    assert "detector.onnx" in said
    assert "image [3, 64, 96] -> boxes, scores, labels\n" in said
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["cat", "dog"]
    image = torch.rand(3, 64, 96)
    [expected] = create_model(MODEL, weights=weights, min_size=32).eval()([image])
    assert len(expected["boxes"]) == 10
    for name, found in zip(("boxes", "scores", "labels"), session.run(None, {"image": image.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected[name].detach(), atol=1e-3, rtol=0)


def test_help_has_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "Example: torchdcn export detector.onnx --model" in " ".join(out.split())


@pytest.mark.parametrize("size", ["640", "0x64", "64x", "axb", "-1x5"])
def test_a_size_that_is_none_is_bad_usage(run: Run, tmp_path: Path, size: str) -> None:
    code, _, err = run(tmp_path / "a.onnx", "--model", MODEL, f"--size={size}")
    assert code == 2
    assert err.startswith(f"error: --size: expected HEIGHTxWIDTH in pixels, such as 480x640, got '{size}'")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("no/a.onnx", (), "OUT.onnx: there is no folder"),
        ("a.pt", (), "OUT.onnx: expected a name that ends in .onnx"),
        ("a.onnx", ("--model", "faster_rcnn_r18"), "did you mean 'faster_rcnn_r18_fpn'?"),
        ("a.onnx", ("--weights", "none.safetensors"), "--weights: there is no file 'none.safetensors'"),
    ],
    ids=["folder", "suffix", "model", "weights"],
)
def test_a_fault_is_one_line(run: Run, tmp_path: Path, name: str, flags: tuple[str, ...], message: str) -> None:
    code, _, err = run(tmp_path / name, "--model", MODEL, *flags)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
