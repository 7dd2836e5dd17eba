"""Every verb that runs a network on a CPU has its weights in the layout in which no layer copies them at a call."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from torchdcn.cli.serve import _networks
from torchdcn.data import open_dataset
from torchdcn.demo import DemoSettings, run_demo
from torchdcn.models import create_model
from torchdcn.models.weights import save_weights
from torchdcn.nn import DeformConv2d

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

MODEL = "faster_rcnn_r18_fpn_mdconv_c3-c5"
SMALL: dict[str, Any] = {
    "fpn_channels": 16, "box_head_channels": 16, "min_size": 64, "rpn_pre_nms_top_n_test": 40,
    "rpn_post_nms_top_n_test": 30, "box_detections_per_img": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    dataset = open_dataset(scenes, "val")
    model = create_model(MODEL, num_classes=len(dataset.class_names), **SMALL)
    model.class_names, model.category_ids = dataset.class_names, dataset.category_ids
    path = tmp_path_factory.mktemp("weights") / "last.safetensors"
    save_weights(model, path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def called() -> Iterator[dict[nn.Module, bool]]:
    """The convolutions that were called, each with whether its weight was in its layout."""
    found: dict[nn.Module, bool] = {}

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, (nn.Conv2d, DeformConv2d)):
            layout = torch.contiguous_format if isinstance(module, DeformConv2d) else torch.channels_last
            found[module] = found.get(module, True) and module.weight.is_contiguous(memory_format=layout)

    handle = register_module_forward_pre_hook(look)
    yield found
    handle.remove()


def check(called: dict[nn.Module, bool], networks: int = 1) -> None:
    assert sum(isinstance(module, DeformConv2d) for module in called) == 6 * networks
    assert len(called) > 30 * networks
    assert [str(module) for module, good in called.items() if not good] == []


def test_detect(run: Run, weights: Path, picture: Path, tmp_path: Path, called: dict[nn.Module, bool]) -> None:
    given = ("--model", MODEL, "--weights", weights, "--device", "cpu")
    assert run("detect", picture, *given, "--out", tmp_path / "found")[0] == 0
    check(called)


def test_eval(run: Run, weights: Path, scenes: Path, called: dict[nn.Module, bool]) -> None:
    assert run("eval", "--data", scenes, "--model", MODEL, "--weights", weights, "--device", "cpu")[0] == 0
    check(called)


def test_explain(run: Run, weights: Path, picture: Path, tmp_path: Path, called: dict[nn.Module, bool]) -> None:
    given = (picture, "--model", MODEL, "--weights", weights, "--compare", f"{MODEL}:{weights}", "--device", "cpu")
    assert run("explain", *given, "--at", "40,30", "--error", "0.6", "--out", tmp_path / "why")[0] == 0
    check(called, networks=2)


def test_serve(weights: Path, picture: Path, called: dict[nn.Module, bool]) -> None:
    for network in _networks([(MODEL, str(weights))] * 2, None, "cpu"):
        network.detector(picture)
    check(called, networks=2)


def test_train(run: Run, scenes: Path, tmp_path: Path, called: dict[nn.Module, bool]) -> None:
    settings = [text for name, value in SMALL.items() if name != "min_size" for text in ("--set", f"{name}={value}")]
    flags = ["--epochs", 1, "--batch-size", 4, "--min-size", 64, "--workers", 0, "--device", "cpu", *settings]
    assert run("train", "--data", scenes, "--model", MODEL, "--out", tmp_path / "run", *flags)[0] == 0
    check(called)


def test_demo(tmp_path: Path, called: dict[nn.Module, bool], one_thread: None) -> None:  # noqa: ARG001
    heads = {"fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "box_batch_size_per_image": 16}
    settings = DemoSettings(train=4, val=2, size=64, epochs=1, pictures=1, overrides=heads)
    run_demo(tmp_path / "demo", Console(file=io.StringIO()), device="cpu", settings=settings)
    check(called, networks=2)  # one that learns, and one that is made from its weights
