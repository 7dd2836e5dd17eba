"""What may happen to a run on its way."""

import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from torchdcn.cli.evaluator import Evaluator
from torchdcn.data import open_dataset
from torchdcn.detector import Detector
from torchdcn.training import Interrupted, read_checkpoint, read_record, train
from torchdcn.training.batches import epoch_plan
from torchdcn.training.checkpoint import read_last_good
from torchdcn.training.folder import lock_folder

DEFORMABLE = "mask_rcnn_r18_fpn_mdconv_c3-c5"
SLOW = os.environ.get("TORCHDCN_SLOW_TESTS") == "1"


def quiet():
    return Console(file=io.StringIO(), width=400)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def same_weights(one, other):
    ours, theirs = (load_file(Path(out) / "last.safetensors") for out in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def damaged_data(scenes, tmp_path):
    """The scenes, of which one file is no picture."""
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "train" / "000003.jpg").write_bytes(b"not a picture")
    return data


def place_of_the_damaged(config):
    """Its place in an epoch of one image a batch."""
    dataset = open_dataset(config.data, "train")
    names = [dataset.image_path(index).name for [(index, _)] in epoch_plan(6, 1, config.seed, 0)]
    return names.index("000003.jpg")


@pytest.fixture(scope="module")
def whole(jobs, scenes, tmp_path_factory):
    """A run of two epochs that nothing has happened to, and how long it took."""
    out, began = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    run = jobs(scenes, out, model=DEFORMABLE, epochs=2, checkpoint_every=1)
    assert run["codes"] == [0], run
    return out, time.monotonic() - began


def test_a_run_stopped_in_mid_epoch_resumes_to_the_same_bits(config, whole, at_step):
    config = replace(config, model=DEFORMABLE, epochs=2, workers=2)
    at_step(4, ctrl_c)
    with pytest.raises(Interrupted, match=r"step 4 of 6.*--resume") as caught:
        train(config, console=quiet())
    assert caught.value.signal == signal.SIGINT
    assert read_checkpoint(Path(config.out) / "checkpoint.pt")["batch"] == 1
    train(config, resume=True, console=quiet())
    assert same_weights(config.out, whole[0])
    assert [line["step"] for line in read_record(Path(config.out) / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_all_epochs_are_loaded_by_the_same_workers(config, at_step):
    workers = []
    for step in (1, 3, 4, 6):
        at_step(step, lambda: workers.append(sorted(each.pid for each in multiprocessing.active_children())))
    train(replace(config, epochs=2, eval_every=1, workers=2), lambda _: {"bbox": {"AP": 0.5}}, console=quiet())
    assert [len(ids) for ids in workers] == [2] * 4
    assert workers == workers[:1] * 4
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.skipif(
    not SLOW, reason="takes minutes: TORCHDCN_SLOW_TESTS=1"))])  # fmt: skip
def test_kill_9_at_any_moment_loses_no_more_than_the_step_it_was_in(jobs, scenes, whole, tmp_path, kills):
    expected, seconds = whole
    draw, reached = random.Random(kills), 0  # noqa: S311  # moments, not secrets
    finished = lost = halves = 0
    out = tmp_path / "run"
    for number in range(kills):
        if reached == 6:  # the run has survived; again from the start
            finished += 1
            assert same_weights(out, expected)
            out, reached = tmp_path / f"run{number}", 0
        job = {"signals": {"0": signal.SIGKILL}, "after_seconds": draw.uniform(0.1, 0.8 * seconds)}
        jobs(scenes, out, model=DEFORMABLE, epochs=2, checkpoint_every=1, workers=number % 3, resume=True, job=job)
        halves += bool(list(out.glob(".*")))
        found = read_last_good(out)
        assert found is None or not found[1]  # no checkpoint is ever damaged
        step = 0 if found is None else found[0]["step"]
        done = max([line["step"] for line in read_record(out / "metrics.jsonl")], default=0)
        assert reached <= step <= done <= max(step + 1, reached)
        lost += done - step
        reached = step
    end = jobs(scenes, out, model=DEFORMABLE, epochs=2, checkpoint_every=1, resume=True)
    assert end["codes"] == [0], end
    assert same_weights(out, expected)
    assert not list(out.glob(".*"))
    figures = f"{finished + 1} runs ended, {lost} steps done twice, {halves} half-written files left behind"
    print(f"{kills} kills: {figures}")  # noqa: T201  # for docs/training.md, by pytest -s


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(config, whole):
    config = replace(config, model=DEFORMABLE, epochs=2)
    out = Path(shutil.copytree(whole[0], config.out))
    checkpoint = out / "checkpoint.pt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt: damaged.*going on from .*previous\.pt, step 5 "):
        train(config, resume=True, console=quiet())
    assert same_weights(out, whole[0])
    assert read_checkpoint(checkpoint)["step"] == 6
    assert read_checkpoint(out / "checkpoint-previous.pt")["step"] == 5
    assert (out / "checkpoint-damaged.pt").read_bytes() == content


def test_a_full_disk_is_told_in_one_line_and_the_last_checkpoint_stays(config, at_step, file_size_limit):
    config = replace(config, checkpoint_every=1)
    limit = file_size_limit(1_000_000)
    at_step(2, limit.__enter__)
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            train(config, console=quiet())
    finally:
        limit.__exit__(None, None, None)
    out = Path(config.out)
    assert str(caught.value) == (
        f"{out} can't be written (File too large); the last good checkpoint is {out / 'checkpoint.pt'}; make room, "
        "then go on with the same command and --resume"
    )
    assert read_checkpoint(out / "checkpoint.pt")["step"] == 1
    assert not list(out.glob(".*"))
    train(config, resume=True, console=quiet())
    assert [line["step"] for line in read_record(out / "metrics.jsonl")] == [1, 2, 3]


def test_a_stop_during_evaluation_is_heard_before_the_next_image(config):
    seen = []

    def evaluate(model):
        for name in ("one", "two"):
            Detector(model)(np.zeros((64, 64, 3), np.uint8))
            seen.append(name)
            ctrl_c()

    with pytest.raises(Interrupted, match="step 3 of 3 and saved"):
        train(config, evaluate, console=quiet())
    assert seen == ["one"]
    assert train(config, lambda _: {"bbox": {"AP": 0.5}}, resume=True, console=quiet()) == {"bbox": {"AP": 0.5}}


def test_an_evaluation_that_was_stopped_is_made_up_for_and_none_is_made_twice(config):
    config = replace(config, epochs=3, eval_every=1)
    stops = [True]

    def evaluate(model):
        if stops:
            stops.pop()
            ctrl_c()
        Detector(model)(np.zeros((64, 64, 3), np.uint8))
        return {"bbox": {"AP": 0.5}}

    with pytest.raises(Interrupted, match="step 3 of 9 and saved"):
        train(config, evaluate, console=quiet())
    for _ in range(2):
        assert train(config, evaluate, resume=True, console=quiet()) == {"bbox": {"AP": 0.5}}
        lines = read_record(Path(config.out) / "metrics.jsonl")
        assert [line["epoch"] for line in lines if line["kind"] == "val"] == [1, 2, 3]


def test_a_folder_is_one_runs_at_a_time(config, monkeypatch):
    monkeypatch.setattr("torchdcn.training.folder.LOCK_TIMEOUT", 0)
    train(config, console=quiet())
    files = {file: file.stat().st_mtime_ns for file in Path(config.out).iterdir()}
    with lock_folder(Path(config.out)):
        for resume in (False, True):
            with pytest.raises(OSError, match=rf"^out: {config.out} is another run's, which is still at work"):
                train(replace(config, epochs=2), resume=resume, console=quiet())
    assert {file: file.stat().st_mtime_ns for file in Path(config.out).iterdir()} == files
    train(replace(config, epochs=2), resume=True, console=quiet())


@pytest.mark.parametrize("error", [OSError("Operation not supported"), NotImplementedError("no flock")], ids=repr)
def test_a_file_system_without_locks_is_warned_of_and_trained_on(tmp_path, monkeypatch, error):
    def refuse(self, timeout):  # noqa: ARG001  # filelock's signature
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.warns(UserWarning, match=rf"can't be locked \({error}\)"), lock_folder(tmp_path / "run"):
        (tmp_path / "run" / "last.safetensors").write_text("weights")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["last.safetensors"]


def test_a_resumed_run_wants_the_same_images(config, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    config = replace(config, data=str(data))
    train(config, console=quiet())
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"] = [image for image in content["images"] if image["file_name"] != "000003.jpg"]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^data: .*run was trained on 6 images, got 5 in .*train\.json; put"):
        train(replace(config, epochs=2), resume=True, console=quiet())


def test_a_terminal_shows_the_bar_of_an_evaluation_within_that_of_the_run(config):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    train(config, Evaluator(config.data, "val", console), console=console)
    assert "epoch 1/1" in console.file.getvalue()
    assert "evaluating on val" in console.file.getvalue()


def test_ctrl_c_twice_leaves_nothing_half_written(config, at_step):
    def twice():
        ctrl_c()
        ctrl_c()

    at_step(2, twice)
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, checkpoint_every=1, workers=2), console=quiet())
    assert read_checkpoint(Path(config.out) / "checkpoint.pt")["step"] == 1
    assert not list(Path(config.out).glob(".*"))


def test_an_unreadable_image_ends_the_run_with_its_name_and_nothing_left(config, tmp_path, damaged_data):
    with pytest.raises(OSError, match=r"000003\.jpg.*; mend it, or go on without such images by --skip-bad-images$"):
        train(replace(config, data=str(damaged_data)), console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_the_images(config, scenes):
    with pytest.raises(FloatingPointError, match="not finite") as caught:
        train(replace(config, lr=1e30, warmup=0.0, checkpoint_every=1), console=quiet())
    dataset = open_dataset(scenes, "train")
    index = epoch_plan(6, 2, config.seed, 0)[1][0][0]
    assert "step 2" in str(caught.value)
    assert str(dataset.image_path(index)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(config):
    checkpoint = Path(config.out) / "checkpoint.pt"
    with pytest.raises(FloatingPointError, match=rf"the last good checkpoint is {checkpoint}$"):
        train(replace(config, lr=1e30, warmup=0.0, checkpoint_every=1), console=quiet())
    assert read_checkpoint(checkpoint)["step"] == 1


def test_a_run_whose_loss_went_astray_goes_on_at_a_lower_rate(config):
    train(config, console=quiet())
    longer = replace(config, epochs=2, eval_every=0)
    with (
        pytest.warns(UserWarning, match=r"^lr: .* was trained with 0\.0004 up to step 3, and goes on with 1e\+30$"),
        pytest.raises(FloatingPointError, match=r"try a lower --lr than 1e\+30, with --resume; the last good"),
    ):
        train(replace(longer, lr=1e30), resume=True, console=quiet())
    with pytest.warns(UserWarning, match=r"^clip: .* was trained with 5\.0") as warned:
        train(replace(longer, lr=1e-4, clip=1.0), resume=True, console=quiet())
    assert [str(each.message)[:4] for each in warned] == ["clip", "lr: "]
    rates = [line["lr"] for line in read_record(Path(config.out) / "metrics.jsonl")]
    assert rates[3:] == [1e-4, 1e-5, 1e-5]  # the drop is after four of the six steps


def test_an_unreadable_image_costs_a_run_that_has_a_checkpoint_nothing(config, damaged_data):
    config = replace(config, data=str(damaged_data), checkpoint_every=1, batch_size=1)
    place = place_of_the_damaged(config)
    assert place > 0
    with pytest.raises(OSError, match=r"000003\.jpg"):
        train(config, console=quiet())
    assert read_checkpoint(Path(config.out) / "checkpoint.pt")["step"] == place
    train(replace(config, skip_bad_images=True), resume=True, console=quiet())
    assert len(read_record(Path(config.out) / "metrics.jsonl")) == 6


def test_bad_images_can_be_skipped_and_are_listed(config, damaged_data, tmp_path, at_step):
    config = replace(config, data=str(damaged_data), skip_bad_images=True, epochs=2)
    console = quiet()
    train(config, console=console)
    shown = console.file.getvalue()
    assert shown.count("skipped: ") == 1
    assert "Images skipped, 1 in all:\n" in shown.partition("skipped: ")[2]
    lines = read_record(Path(config.out) / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    [skipped] = [line for line in lines if line["kind"] == "skipped"]
    assert skipped["image"] == str(damaged_data / "train" / "000003.jpg")
    other = replace(config, out=str(tmp_path / "other"), workers=1)
    at_step(4, ctrl_c)
    with pytest.raises(Interrupted):
        train(other, console=quiet())
    console = quiet()
    train(other, resume=True, console=console)
    assert same_weights(other.out, config.out)
    assert "Images skipped, 1 in all:" in console.file.getvalue()


def test_a_batch_of_bad_images_alone_is_passed_over(config, damaged_data):
    config = replace(config, data=str(damaged_data), skip_bad_images=True, batch_size=1)
    train(config, console=quiet())
    lines = [line for line in read_record(Path(config.out) / "metrics.jsonl") if line["kind"] == "train"]
    assert {line["step"] for line in lines} == {1, 2, 3, 4, 5, 6} - {place_of_the_damaged(config) + 1}
    assert lines[-1]["lr"] == config.lr / 10  # the schedule has gone on


def test_data_without_any_readable_image_is_refused(config, damaged_data):
    for file in (damaged_data / "train").iterdir():
        file.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"^data: none of the 6 images can be read, the first one: .*\.jpg"):
        train(replace(config, data=str(damaged_data), skip_bad_images=True), console=quiet())
