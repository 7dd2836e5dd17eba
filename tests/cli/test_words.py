"""Errors in the command line's words: flags instead of the arguments of functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchdcn.data import folders
from torchdcn.models import create_model
from torchdcn.models.weights import save_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL, OTHER = "faster_rcnn_r18_fpn_mdconv_c3-c5", "faster_rcnn_r18_fpn"
SMALL: dict[str, Any] = {"deform_stages": ("c5",), "fpn_channels": 16, "box_head_channels": 16, "min_size": 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(create_model(MODEL, num_classes=6, **SMALL), path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(path)
    return path


def fault(outcome: tuple[int, str, str], code: int = 1) -> str:
    """The one line of an error."""
    got, _, err = outcome
    assert got == code, err
    assert len(err.splitlines()) == 1, err
    return err.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "foo"), "--model: there is no model 'foo'; `torchdcn models` lists them"),
        (
            ("--model", "faster_rcnn_r18"),
            "--model: there is no model 'faster_rcnn_r18'; did you mean 'faster_rcnn_r18_fpn'? `torchdcn models` lists",
        ),
        (("--at", "400,2"), "--at: expected a pixel of the image of 80 x 64, got 400, 2"),
        (("--at", "1;2"), "--at: expected X,Y in pixels, such as 120,80, got '1;2'"),
        (("--layer", "foo"), "--layer: the model has no layer 'foo'; its parts are transform, backbone, rpn, roi_"),
        (("--layer", "rpn.heed"), "--layer: the model has no layer 'rpn.heed'; did you mean 'rpn.head'?"),
        (("--device", "tpu"), "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (("--device", "cuda:99"), "--device: 'cuda:99' can't be used here"),
        (("--compare", "foo"), "--compare: there is no model 'foo'; `torchdcn models` lists them"),
        (("--compare", f"{MODEL}:none.pth"), "--compare: there is no file 'none.pth'"),
        (("--weights", "none.pth"), "--weights: there is no file 'none.pth'"),
    ],
)
def test_a_fault_names_the_flag_and_leaves_nothing(
    run: Run, weights: Path, picture: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    given = {"--model": MODEL, "--weights": weights, "--at": "4,2", "--out": tmp_path / "why", "--device": "cpu"}
    given |= {flags[0]: flags[1]}
    code = 2 if flags[1] == "1;2" else 1
    words = [word for pair in given.items() for word in pair]
    assert fault(run("explain", picture, *words), code).startswith(message)
    assert not (tmp_path / "why").exists()


def test_a_box_outside_of_the_picture_is_the_flag_of_the_box(
    run: Run, weights: Path, picture: Path, tmp_path: Path
) -> None:
    given = ("--weights", weights, "--out", tmp_path / "why", "--roi", "200,2,300,40")
    assert fault(run("explain", picture, *given)).startswith("--roi: ")
    assert not (tmp_path / "why").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--set", "foo=1"), r"^--set foo: not a setting of a model; torchdcn\.models\.settings\.Settings lists them"),
        (("--set", "pretrained=true"), r"^--set pretrained: .*--weights or --weights-backbone"),
        (("--set", "fpn_channels=0"), "^--set fpn_channels: expected a positive int, got 0"),
        (("--amp", "fp16"), "^--amp: fp16 needs a CUDA device"),
        (("--device", "tpu"), "^--device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (("--model", "foo"), "^--model: there is no model 'foo'; `torchdcn models` lists them"),
        (("--weights", "no.pth"), "^--weights: there is no file 'no.pth'"),
        (("--weights-backbone", "no.pth"), "^--weights-backbone: there is no file 'no.pth'"),
    ],
)
def test_train_finds_bad_flags_before_it_draws(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchdcn.data.folders.make_synthetic", _must_not_be_drawn)
    given = {"--data": "synthetic", "--model": MODEL, "--out": tmp_path / "run", "--device": "cpu"}
    given |= {flags[0]: flags[1]}
    words = [word for pair in given.items() for word in pair]
    said = fault(run("train", *words))
    assert re.search(message, said), said
    assert len(said) < 250
    assert not (tmp_path / "run").exists()


def _must_not_be_drawn(*_: Any, **__: Any) -> Path:
    raise AssertionError("drawn")


def test_eval_finds_bad_weights_before_it_draws(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torchdcn.data.folders.make_synthetic", _must_not_be_drawn)
    outcome = run("eval", "--data", "synthetic", "--model", MODEL, "--weights", "nofile")
    assert fault(outcome) == "--weights: there is no file 'nofile'"
    outcome = run("eval", "--data", "synthetic", "--model", "foo", "--weights", "coco")
    assert fault(outcome).startswith("--model: there is no model 'foo'")


def test_drawing_is_told_where_there_is_no_terminal(
    run: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"train": 2, "val": 1, "size": 64}.items():
        monkeypatch.setitem(folders.DEFAULT, name, value)
    given = ("--data", "synthetic", "--weights", weights, "--device", "cpu")
    code, out, err = run("eval", *given)
    assert (code, err) == (0, "")
    assert out.startswith("Drawing 3 scenes\n")
    assert "Drawing" not in run("eval", *given)[1]


# --- The model's name may be the weights file's. --------------------------------------------------------------------


def test_weights_name_their_model(run: Run, weights: Path, picture: Path) -> None:
    code, out, err = run("detect", picture, "--weights", weights)
    assert (code, err) == (0, "")
    assert "Nothing was kept: --out FOLDER keeps the pictures, --json FILE the detections" in out


def test_a_file_of_torch_names_its_model_too(run: Run, weights: Path, picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.pth"
    assert run("convert", weights, file, "--model", MODEL)[0] == 0
    code, _, err = run("detect", picture, "--weights", file, "--json", tmp_path / "found.json")
    assert (code, err) == (0, "")
    anonymous = tmp_path / "anonymous.pth"
    torch.save({"a": torch.zeros(1)}, anonymous)
    said = fault(run("detect", picture, "--weights", anonymous), 2)
    assert said == f"--model: {anonymous} doesn't say which model it is of; give its name, see `torchdcn models`"


@pytest.mark.parametrize("verb", ["detect", "explain", "export", "serve"])
def test_without_a_file_that_names_it_the_model_is_needed(run: Run, picture: Path, tmp_path: Path, verb: str) -> None:
    words: dict[str, tuple[Any, ...]] = {
        "detect": (picture,), "explain": (picture, "--at", "1,1", "--out", tmp_path / "why"),
        "export": (tmp_path / "a.onnx",), "serve": ("--port", "0"),
    }  # fmt: skip
    said = fault(run(verb, *words[verb]), 2)
    assert said == f"Missing option '--model', which a --weights file can stand in for. (see torchdcn {verb} --help)"
    said = fault(run(verb, *words[verb], "--weights", "coco"), 2)
    assert said == f"Missing option '--model': coco has weights of several models. (see torchdcn {verb} --help)"


def test_weights_of_another_model_say_which(run: Run, weights: Path, picture: Path) -> None:
    said = fault(run("detect", picture, "--model", OTHER, "--weights", weights))
    assert said == (
        f"--weights: {weights} holds a {MODEL}, not a {OTHER}; give that name, or weights of the model you named"
    )
