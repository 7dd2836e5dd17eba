from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pycocotools import mask as oracle

import torchdcn.data
import torchdcn.synthetic.dataset
from torchdcn.data import CocoDetection, make_synthetic, open_dataset, synthetic_folder
from torchdcn.synthetic.scenes import CLASS_NAMES

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "scenes", train=24, val=6, size=96, seed=5)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_is_a_folder_in_cocos_format(scenes: Path) -> None:
    data = CocoDetection(scenes, "train")
    assert data.class_names == CLASS_NAMES
    assert len(data) == 24
    assert len(CocoDetection(scenes, "val")) == 6
    image, target = data[0]
    assert image.shape == (3, 96, 96)
    assert len(target["boxes"]) >= 1


def test_the_same_seed_gives_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    again = make_synthetic(tmp_path / "again", train=24, val=6, size=96, seed=5)
    assert contents(again) == contents(scenes)


def test_another_seed_gives_other_scenes(scenes: Path, tmp_path: Path) -> None:
    other = make_synthetic(tmp_path / "other", train=2, val=0, size=96, seed=6)
    assert (other / "train" / "000000.jpg").read_bytes() != (scenes / "train" / "000000.jpg").read_bytes()


def test_splits_differ_and_a_larger_set_begins_with_the_smaller(scenes: Path, tmp_path: Path) -> None:
    small = make_synthetic(tmp_path / "small", train=3, val=1, size=96, seed=5)
    large = contents(scenes)
    for name, content in contents(small).items():
        if name.endswith(".jpg"):
            assert content == large[name]
    assert large["train/000000.jpg"] != large["val/000000.jpg"]


def test_boxes_and_areas_are_those_of_the_masks(scenes: Path) -> None:
    content = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    assert len({entry["category_id"] for entry in content["annotations"]}) == len(CLASS_NAMES)
    for entry in content["annotations"]:
        mask = oracle.decode(entry["segmentation"])
        rows, columns = np.nonzero(mask)
        x, y, w, h = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        assert entry["area"] == mask.sum()
        assert entry["bbox"] == [x, y, w, h]


def test_progress_counts_every_scene(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_synthetic(tmp_path / "s", train=2, val=1, size=48, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 16}, "size: expected an integer of 32 or more, got 16"),
        ({"train": -1}, "train: expected an integer of 0 or more, got -1"),
        ({"val": 1.5}, "val: expected an integer of 0 or more, got 1.5"),
        ({"seed": -1}, "seed: expected an integer of 0 or more, got -1"),
        ({"difficulty": 1.5}, r"difficulty: expected a number in 0\.\.1, got 1\.5"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_synthetic(tmp_path / "s", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is there already and not an empty folder"):
        make_synthetic(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, interruption: type[BaseException]) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise interruption

    with pytest.raises(interruption):
        make_synthetic(tmp_path / "s", train=3, val=1, size=48, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_data_set_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        torchdcn.data.folders, "DEFAULT", {"train": 2, "val": 1, "size": 48, "seed": 0, "difficulty": 0.5}
    )
    drawn: list[int] = []
    first = open_dataset("synthetic", "val", progress=lambda done, _: drawn.append(done))
    again = open_dataset("synthetic", "train", progress=lambda done, _: drawn.append(done))
    assert drawn == [1, 2, 3]
    assert first.root == again.root == synthetic_folder()
    assert first.root.is_relative_to(tmp_path / "torchdcn")
    assert (len(again), len(first)) == (2, 1)


def test_the_default_settings_are_those_of_the_generator() -> None:
    defaults = make_synthetic.__kwdefaults__
    assert {name: defaults[name] for name in torchdcn.data.folders.DEFAULT} == torchdcn.data.folders.DEFAULT


def test_another_process_that_finished_first_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = {"train": 1, "val": 1, "size": 48, "seed": 0, "difficulty": 0.5}
    monkeypatch.setattr(torchdcn.data.folders, "DEFAULT", small)

    def overtaken(root: Path, **settings: float) -> Path:
        make_synthetic(root, **settings)  # type: ignore[arg-type]
        return make_synthetic(root, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torchdcn.data.folders, "make_synthetic", overtaken)
    assert len(open_dataset("synthetic", "train")) == 1


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        open_dataset(tmp_path / "nowhere")


DRAWING = "import sys; from torchdcn.data import make_synthetic; make_synthetic(sys.argv[1], train=100000, size=256)"


def test_what_a_killed_process_has_left_goes_and_what_another_draws_stays(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    drawing = [subprocess.Popen([sys.executable, "-c", DRAWING, str(root)]) for _ in range(2)]
    try:
        until = time.monotonic() + 300
        while len(partial := list(tmp_path.glob(".scenes.*.partial"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(drawing[0].pid, signal.SIGKILL)
        drawing[0].wait()
        make_synthetic(root, train=1, val=1, size=48)
        left = [path.name for path in partial if path.exists()]
        assert len(left) == 1
        assert f".{drawing[1].pid}." in left[0]
    finally:
        for process in drawing:
            process.kill()
            process.wait()


def test_leftovers_go_where_the_scenes_are_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = {"train": 1, "val": 1, "size": 48, "seed": 0, "difficulty": 0.5}
    monkeypatch.setattr(torchdcn.data.folders, "DEFAULT", small)
    root = synthetic_folder()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = torchdcn.synthetic.dataset.partial_folder(root, gone.pid)
    other = left.with_name(f".{root.name}.elsewhere.{gone.pid}.partial")  # another machine's
    for folder in (left, other):
        (folder / "train").mkdir(parents=True)
    assert synthetic_folder() == root
    assert not left.exists()
    assert other.exists()
