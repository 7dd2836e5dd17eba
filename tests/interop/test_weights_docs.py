"""What docs/weights.md shows is what happens, and its table is that of the code."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image

from torchdcn.cli import main
from torchdcn.interop import to_mmdet
from torchdcn.models import create_model
from torchdcn.weights.released import PUBLISHED

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"


def test_the_page_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = PAGE.read_text().replace("_r50_", "_r18_")  # the same, in a tenth of the time
    theirs = create_model("mask_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, norm="frozen_bn")
    torch.save({"state_dict": to_mmdet(theirs), "meta": {"CLASSES": ("cat", "dog")}}, "epoch_12.pth")
    Image.new("RGB", (64, 48)).save("street.jpg")
    blocks = re.findall(r"```python\n(.*?)```(?:\n\nprints\n\n```text\n(.*?)```)?", text, re.DOTALL)
    assert len(blocks) == 3
    page: dict[str, object] = {}
    for code, printed in blocks:
        exec(compile(code, str(PAGE), "exec"), page)  # noqa: S102 - our own page
        assert printed == capsys.readouterr().out
    assert page["detections"].class_names == ("cat", "dog")  # type: ignore[attr-defined]
    written = torch.load("for_mmdet.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(written[key], value) for key, value in to_mmdet(theirs).items())
    assert page["again"].category_ids == (17, 18)  # type: ignore[attr-defined]

    commands = re.findall(r"^torchdcn convert .*$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(command)[1:])
        assert caught.value.code == 0
    assert Path("again.safetensors").read_bytes() == Path("weights.safetensors").read_bytes()


def test_the_table_has_every_published_file() -> None:
    rows = dict(re.findall(r"^\| `(\S+)` \| `(\S+\.pth)` \|$", PAGE.read_text(), re.MULTILINE))
    assert {name: f"/mmdetection/v2.0/{path}" for name, path in rows.items()} == {
        name: urlsplit(published.weights_url).path for name, published in PUBLISHED.items()
    }


@pytest.mark.parametrize(
    "module", ["models.weights", "weights.mmdet", "weights.messages", "weights.released", "interop.mmdet"]
)
def test_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"torchdcn.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
