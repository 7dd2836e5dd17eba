import io
import json
import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from torchdcn.demo import DemoSettings, run_demo

TINY = DemoSettings(
    train=4, val=3, size=64, epochs=1, pictures=2,
    overrides={"fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "box_batch_size_per_image": 16},
)  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("demo") / "out"
    console = Console(file=io.StringIO(), width=100)
    metrics = run_demo(out, console, device="cpu", settings=TINY)
    torch.set_num_threads(threads)
    return out, metrics, console.file.getvalue()


def test_the_demo_leaves_what_it_promises(demo):
    out, metrics, _ = demo
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics) == {"bbox", "segm"}
    assert len(list((out / "detections").glob("*.png"))) == 2
    assert (out / "training" / "last.safetensors").is_file()
    for picture in (*out.glob("*.png"), *(out / "detections").iterdir()):
        with Image.open(picture) as image:
            image.load()
    assert (out / "loss.png").is_file()


def test_the_report_holds_its_pictures_and_asks_for_nothing(demo):
    out, metrics, _ = demo
    report = (out / "report.html").read_text()
    assert report.count("<img ") == report.count('src="data:image/') >= 3
    assert not re.search(r"""(src|href)=(?!"data:)|url\(|@import|<script|<link""", report)
    assert not re.search(r"\$\w", report)
    assert f"{100 * metrics['bbox']['AP50']:.1f}" in report
    assert "prefers-color-scheme: dark" in report
    assert all(name in report for name in ("starfish", "spider", "torchdcn train --data", "torchdcn detect"))


def test_the_demo_says_what_to_do_next(demo):
    out, _, printed = demo
    assert str(out / "report.html") in printed
    assert "torchdcn train --data my/coco --model mask_rcnn_r18_fpn_mdconv_c3-c5" in printed


@pytest.mark.parametrize("config", [None, "{}", '{"data": "my/coco", "model": "mask_rcnn_r18_fpn", "out": "o"}'])
def test_a_training_folder_of_somebody_else_is_not_touched(tmp_path, config):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "mine.txt").write_text("mine")
    if config:
        (tmp_path / "training" / "config.json").write_text(config)
    with pytest.raises(FileExistsError, match=r"training: is there already and not from a demo"):
        run_demo(tmp_path, Console(file=io.StringIO()), device="cpu", settings=TINY)
    assert (tmp_path / "training" / "mine.txt").read_text() == "mine"


def test_a_folder_of_somebody_elses_scenes_is_not_touched(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not from a demo"):
        run_demo(tmp_path, Console(file=io.StringIO()), device="cpu", settings=TINY)
    assert (tmp_path / "scenes" / "mine.txt").read_text() == "mine"
