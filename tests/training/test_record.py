import io

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchdcn.training import read_record
from torchdcn.training.folder import RunFolder
from torchdcn.training.record import Means, Record


def console():
    return Console(file=io.StringIO(), width=200)


def figures(loss):
    return {"loss": loss, "lr": 1e-3, "images_per_s": 5.0}


def test_lines_hold_losses_and_evaluations(tmp_path):
    with Record(tmp_path, console(), steps=4) as record:
        record.losses("epoch 1/1", 2, figures(0.5))
        record.evaluation(1, 4, {"bbox": {"AP": 0.25}})
    lines = read_record(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 2), ("val", 4)]
    assert lines[0]["loss"] == 0.5
    assert lines[1]["bbox"] == {"AP": 0.25}
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_memory_is_recorded_and_shown(tmp_path):
    screen = console()
    with Record(tmp_path, screen, steps=2) as record:
        record.losses("epoch 1/1", 2, figures(0.5))
    [line] = read_record(tmp_path / "metrics.jsonl")
    assert 50 < line["memory_mib"] < 1e6
    assert " GiB" in screen.file.getvalue()


def test_pictures_reach_the_events_file(tmp_path):
    with Record(tmp_path, console(), steps=4) as record:
        record.pictures(4, {"detections": np.full((8, 12, 3), 200, np.uint8)})
    events = EventAccumulator(str(tmp_path)).Reload()
    [image] = events.Images("val/detections")
    assert (image.step, image.width, image.height) == (4, 12, 8)


def test_a_resumed_run_drops_the_lines_of_steps_that_are_done_again(tmp_path):
    with Record(tmp_path, console(), steps=4) as record:
        for step in (1, 2, 3):
            record.losses("", step, figures(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # killed while writing
    with Record(tmp_path, console(), steps=4, done=2) as record:
        record.losses("", 3, figures(9.0))
    assert [(line["step"], line["loss"]) for line in read_record(tmp_path / "metrics.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 9),
    ]


def test_means_weigh_by_images_and_start_again():
    means = Means()
    means.add({"loss": 1.0}, 3)
    means.add({"loss": 5.0}, 1)
    first = means.pop()
    assert first["loss"] == 2.0
    assert first["images_per_s"] > 0
    means.add({"loss": 7.0}, 1)
    assert means.pop()["loss"] == 7.0


def test_an_earlier_run_is_moved_aside_and_kept(tmp_path):
    (tmp_path / "checkpoint.pt").write_text("precious")
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path, resumed=False) as folder:
        pass
    assert (folder.moved_to / "checkpoint.pt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.moved_to.name, "notes.txt"])


def _failing_run(path, saved):
    with RunFolder(path, resumed=False) as folder:
        (folder.path / "checkpoint.pt").write_text("good")
        folder.saved = saved
        raise OSError("picture")


def test_a_run_that_came_to_nothing_leaves_nothing(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(OSError, match="picture"):
        _failing_run(out, saved=False)
    assert not out.exists()


def test_a_run_that_has_saved_keeps_its_files_when_it_fails(tmp_path):
    with pytest.raises(OSError, match="picture"):
        _failing_run(tmp_path / "run", saved=True)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(OSError, match=r"^out: "):
            RunFolder(path, resumed=False)
