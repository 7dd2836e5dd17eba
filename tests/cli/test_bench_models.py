from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from torchdcn.bench.memory import can_measure
from torchdcn.cli import main

VERB = ("bench", "models")
MODEL = "faster_rcnn_r18_fpn_mdconv_c3-c5"
TINY = ["--models", MODEL, "--size", "64x96", "--rounds", "1", "--threads", "1"]


def cells(out: str, label: str) -> list[str]:
    return next(re.split(r" {2,}", line.strip()) for line in out.splitlines() if line.strip().startswith(label + "  "))[
        1:
    ]


@pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
def test_prints_speed_and_memory_beside_the_regular_network_and_how_to_do_it_again(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "figures.json"
    code, out, err = run(*TINY, "--batch", 1, "--json", file)
    assert (code, err) == (0, "")
    fps, ratio, memory, *published = cells(out, MODEL)
    assert float(fps) > 0
    assert float(ratio) > 0
    assert float(memory) > 0.05
    assert published == ["-", "-"]
    assert cells(out, "faster_rcnn_r18_fpn")[1] == "1.00"
    assert shlex.split(cells(out, "again with")[0])[3:] == [*TINY[:6], "--batch", "1", *TINY[6:]]

    record = json.loads(file.read_text())
    assert record["command"].startswith(f"torchdcn bench models --models {MODEL}")
    regular, deformable = record["detectors"]
    assert (regular["name"], regular["regular"], regular["x_regular"]) == ("faster_rcnn_r18_fpn", True, 1)
    assert (deformable["name"], deformable["regular"]) == (MODEL, False)
    assert deformable["fps"] == pytest.approx(1 / deformable["seconds_by_round"][0])
    assert deformable["train_bytes"] / 1e9 == pytest.approx(float(memory), abs=0.01)
    assert (
        regular["counts"] == deformable["counts"] == {"proposals": 1000, "boxes": 1000, "masks": 0, "detections": 100}
    )
    assert regular["training_step"]["counts"] == deformable["training_step"]["counts"]
    assert list(file.parent.iterdir()) == [file]


def test_prints_the_parts_of_both_networks_and_what_goes_through_them(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchdcn.bench.models.training_memory", lambda *_: None)  # which takes most of the time
    model, file = "mask_rcnn_r18_fpn_mdconv_c3-c5", tmp_path / "figures.json"
    code, out, _ = run("--models", model, *TINY[2:], "--json", file)
    assert code == 0
    detection, training = (text.splitlines() for text in re.split(r"\nSeconds of ", out)[1:])
    assert detection[0] == "detection, batch 1: 1000 proposals, 100 detections, 100 masks"
    assert training[0] == (
        "a training step, forward and backward, batch 1: 1000 proposals, 512 boxes sampled, 128 masks"
    )
    record = json.loads(file.read_text())["detectors"]
    for lines, figures, pasting in (
        (detection, record, ["pasting"]),
        (training, [one["training_step"] for one in record], []),
    ):
        names = ["body", "pyramid", "RPN", "box head", "mask head", *pasting, "rest"]
        assert [list(one["parts"]) for one in figures] == [names, names]
        rows = {label: numbers for label, *numbers in (re.split(r" {2,}", line.strip()) for line in lines) if numbers}
        for one, label in zip(figures, ("mask_rcnn_r18_fpn", model), strict=True):
            whole, *parts = map(float, rows[label])
            assert len(parts) == len(names)
            assert sum(parts) == pytest.approx(whole, abs=0.01 * (1 + whole))  # as rounded
            assert sum(part["seconds"] for part in one["parts"].values()) == pytest.approx(one["seconds"])
        ratios = [figures[1]["x_regular"], *(part.get("x_regular") for part in figures[1]["parts"].values())]
        assert rows["x regular"] == ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]


def test_help_lists_the_benchmark(capsys: pytest.CaptureFixture[str], run: Any) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert re.search(r"^\W*models  ", capsys.readouterr().out, re.MULTILINE)
    assert "Example: torchdcn bench models" in " ".join(run("--help")[1].split())


def test_published_figures_are_labelled_as_published(run: Any) -> None:
    code, out, _ = run("--models", "faster_rcnn_r50_fpn_mdconv_c3-c5", *TINY[2:], "--no-train")
    assert code == 0
    assert cells(out, "faster_rcnn_r50_fpn_mdconv_c3-c5")[2:] == ["17.6", "4.1"]
    assert "published: mmdetection's figures on V100 GPUs (training: 2 pictures a GPU), not measured here." in out
    assert "--no-train" in cells(out, "again with")[0]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--models", "faster_rcnn_r18"],
            1,
            "--models: there is no model 'faster_rcnn_r18'; did you mean 'faster_rcnn_r18_fpn'",
        ),
        (["--size", "800"], 2, "--size: expected height x width of at least 64 each, such as 800x1344, got '800'"),
        (["--size", "32x900"], 2, "--size: expected"),
        (["--models", ","], 2, "--models: expected a model's name, got ','; torchdcn models lists them"),
        (["--rounds", "0"], 2, "--rounds"),
        (["--batch", "0"], 2, "--batch"),
        (["--device", "cuda:99"], 1, "--device: 'cuda:99'"),
    ],
)
def test_what_can_not_be_run_is_said_in_one_line(run: Any, flags: list[str], code: int, message: str) -> None:
    got, out, err = run(*flags)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_json_that_is_a_folder_is_refused_before_anything_runs(run: Any, tmp_path: Path) -> None:
    code, out, err = run(*TINY, "--json", tmp_path)
    assert (code, out) == (1, "")
    assert "json: " in err


def test_the_script_is_the_same_command() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "models.py"
    assert 'main(["bench", "models", *sys.argv[1:]])' in script.read_text()
