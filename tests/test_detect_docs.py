"""What docs/detect.md shows is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchdcn.cli import main
from torchdcn.models import create_model
from torchdcn.models.weights import save_weights

PAGE = Path(__file__).parents[1] / "docs" / "detect.md"


def make_files() -> None:
    """What the page takes for granted: weights, a picture, a folder of pictures."""
    torch.manual_seed(0)
    model = create_model("mask_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, min_size=64, box_detections_per_img=5)
    model.class_names, model.category_ids = ("car", "bicycle"), (3, 2)
    Path("runs/my").mkdir(parents=True)
    save_weights(model, "runs/my/last.safetensors")
    Path("holiday").mkdir()
    rng = np.random.default_rng(0)
    for file in ("street.jpg", "holiday/1.png", "holiday/2.png"):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(file)


def test_the_page_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_files()
    blocks = re.findall(r"```(python|console)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") >= 5
    page: dict[str, object] = {}
    for kind, code in blocks:
        if kind == "console":
            with pytest.raises(SystemExit) as caught:
                main(shlex.split(code)[1:])
            assert caught.value.code == 0
            continue
        exec(compile(code, str(PAGE), "exec"), page)  # noqa: S102 - our own page
        output = capsys.readouterr().out
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert [line for line in expected if line not in output.splitlines()] == []
    assert len(page["found"]) > 0  # type: ignore[arg-type]  # else the page shows nothing
    assert {path.name for path in Path("found").iterdir()} == {"street.png", "1.png", "2.png"}
