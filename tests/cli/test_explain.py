from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchdcn.models import create_model
from torchdcn.models.weights import save_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

VERB = ("explain",)
MODEL, REGULAR = "faster_rcnn_r18_fpn_mdconv_c3-c5", "faster_rcnn_r18_fpn"
FILES = {f"{n}.{k}" for n in ("sampling", "receptive-field", "saliency", "support") for k in ("png", "svg")}
FILES |= {"explain.json", "report.html"}
SMALL: dict[str, Any] = {
    "deform_stages": ("c5",), "fpn_channels": 32, "box_head_channels": 32, "min_size": 64,
    "rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    files = {}
    for name in (MODEL, REGULAR):
        model = create_model(name, num_classes=2, **SMALL)
        model.class_names = ("cat", "dog")
        files[name] = folder / f"{name}.safetensors"
        save_weights(model, files[name])
    return files


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_two_networks_are_explained_side_by_side(
    run: Run, weights: dict[str, Path], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "why"
    given = (picture, "--model", REGULAR, "--weights", weights[REGULAR], "--compare", f"{MODEL}:{weights[MODEL]}")
    code, said, complained = run(*given, "--at", "40,30", "--out", out)
    assert (code, complained) == (0, "")
    assert "at most 40 passes" in said
    assert {path.name for path in out.iterdir()} == FILES
    numbers = json.loads((out / "explain.json").read_text())
    first, second = numbers["networks"]
    assert first["node"] == second["node"] == {"layer": "backbone.body.layer4", "y": 1, "x": 1}
    assert first["layers"] == second["layers"] == [f"backbone.body.layer4.{block}.conv2" for block in (0, 1)]
    assert all(network["region"]["error"] <= 0.2 for network in numbers["networks"])
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    assert "src=" in page
    assert Image.open(out / "support.png").width > Image.open(out / "sampling.png").width


def test_a_box_is_explained_with_its_bins(run: Run, weights: dict[str, Path], picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "why"
    given = (picture, "--model", MODEL, "--weights", weights[MODEL], "--roi", "10,10,50,40", "--error", "0.4")
    code, _, complained = run(*given, "--out", out)
    assert (code, complained) == (0, "")
    [network] = json.loads((out / "explain.json").read_text())["networks"]
    assert network["node"] == {"roi": [10, 10, 50, 40]}
    assert any("box_roi_pool" in layer for layer in network["layers"])
    assert any("layer4" in layer for layer in network["layers"])


def test_a_bound_that_needs_nothing_kept_is_said(
    run: Run, weights: dict[str, Path], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "why"
    given = (picture, "--model", MODEL, "--weights", weights[MODEL], "--at", "10,10", "--error", "100")
    code, _, complained = run(*given, "--out", out)
    assert (code, complained) == (0, "")
    [network] = json.loads((out / "explain.json").read_text())["networks"]
    assert network["region"]["area"] == 0
    assert network["summaries"]["region"] is None
    assert network["summaries"]["field"]["radius"] > 0
    assert "nothing has to be kept" in (out / "report.html").read_text()


def test_help_has_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "Example: torchdcn explain street.jpg --model" in " ".join(out.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "expected --at X,Y or --roi X1,Y1,X2,Y2, one of them"),
        (("--at", "1,2", "--roi", "1,2,3,4"), "one of them"),
        (("--at", "1;2"), "--at: expected X,Y in pixels, such as 120,80, got '1;2'"),
        (("--roi", "1,2,3"), "--roi: expected X1,Y1,X2,Y2 in pixels"),
    ],
)
def test_a_place_that_is_none_is_bad_usage(
    run: Run, picture: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    code, _, err = run(picture, "--model", MODEL, "--out", tmp_path / "why", *flags)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--at", "400,2"), "--at: expected a pixel of the image of 80 x 64, got 400, 2"),
        (("--at", "4,2", "--layer", "backbone.body.layer5"), "did you mean 'backbone.body.layer4'?"),
        (("--roi", "200,2,300,40"), "is outside of the image of 80 x 64 pixels"),
        (("--at", "4,2", "--compare", "faster_rcnn_r18"), "did you mean 'faster_rcnn_r18_fpn'?"),
    ],
)
def test_a_fault_is_one_line(
    run: Run, weights: dict[str, Path], picture: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    given = (picture, "--model", MODEL, "--weights", weights[MODEL], "--out", tmp_path / "why")
    code, _, err = run(*given, *flags)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_the_picture_itself_is_not_overwritten(run: Run, picture: Path) -> None:
    own = picture.rename(picture.with_name("sampling.png"))
    code, _, err = run(own, "--model", MODEL, "--at", "1,1", "--out", own.parent)
    assert code == 1
    assert "--out: would overwrite" in err
