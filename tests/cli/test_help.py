"""What ``--help`` shows, and that it is quick."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

VERBS = ("bench ops", "convert", "demo", "detect", "eval", "explain", "export", "models", "serve", "train")
CHAIN = ("detect", "explain", "export", "serve")
MODEL = "mask_rcnn_r18_fpn_mdconv_c3-c5"


@pytest.fixture
def shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The help of a verb, its frames and line breaks away."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)

    def text(verb: str) -> str:
        code, out, _ = run(*verb.split(), "--help")
        assert code == 0
        return " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())

    return text


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_a_flag_without_a_value_shows_none(shown: Callable[[str], str], verb: str) -> None:
    assert "<bool>" not in shown(verb)
    assert "--help -h Show this message and exit." in shown(verb)


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("detect", "torchdcn detect [OPTIONS] IMAGE... Finds"),
        ("export", "torchdcn export [OPTIONS] OUT.onnx Writes"),
        ("convert", "torchdcn convert [OPTIONS] IN OUT Converts"),
        ("models", "torchdcn models [OPTIONS] Lists"),
    ],
)
def test_the_usage_has_names_without_brackets(shown: Callable[[str], str], verb: str, usage: str) -> None:
    assert usage in shown(verb)


def test_a_default_stands_in_one_pair_of_brackets(shown: Callable[[str], str]) -> None:
    text = shown("train")
    assert "[default: 2]" in text
    assert "[default: scratch, 1x: 12; paper: 16]" in text
    assert "[default: (" not in text


@pytest.mark.parametrize("verb", [*CHAIN, "eval"])
def test_weights_and_model_say_what_they_may_be(shown: Callable[[str], str], verb: str) -> None:
    text = shown(verb)
    assert "or coco" in text
    assert "by default the one that the weights file names" in text
    if verb != "export":
        assert "cpu, cuda, cuda:1; by default CUDA where there is one." in text


def test_data_and_settings_say_what_they_may_be(shown: Callable[[str], str]) -> None:
    assert "a YOLO or VOC folder" in shown("eval")
    assert "torchdcn.models.settings.Settings" in shown("train")


@pytest.mark.parametrize("verb", CHAIN)
def test_the_examples_go_on_from_that_of_train(shown: Callable[[str], str], verb: str) -> None:
    assert f"--model {MODEL} --out runs/my" in shown("train")
    assert f"--model {MODEL} --weights runs/my/last.safetensors" in shown(verb)


def test_the_command_line_imports_torch_in_its_verbs_only() -> None:
    started = "import sys; sys.argv = ['/usr/bin/torchdcn']; import torchdcn.cli\n"  # as the installed program does
    code = f"{started}print([m for m in ('torch', 'torchvision', 'tensorboard') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        code = (
            f"{started}try: torchdcn.cli.main({arguments!r})\nfinally: sys.stderr.write(str('torch' in sys.modules))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == "False"
