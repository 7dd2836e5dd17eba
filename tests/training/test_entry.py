import copy
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from torchdcn.data import open_dataset
from torchdcn.models import create_model
from torchdcn.training import TrainConfig, lr_factor, read_record, train


def quiet():
    return Console(file=io.StringIO(), width=400)


def figures(model):
    return {"bbox": {"AP": 0.5 if model.name.startswith("mask") else 0.0}}


def test_a_run_leaves_weights_figures_settings_and_events(config, tmp_path):
    assert train(config, figures, console=quiet()) == {"bbox": {"AP": 0.5}}
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "metrics.json", "last.safetensors", "checkpoint.pt"} < names
    assert sum(name.startswith("events.out.tfevents") for name in names) == 1
    assert TrainConfig.load(run / "config.json") == config
    lines = read_record(run / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("train", 3), ("val", 3)]
    assert {"loss", "loss_mask", "lr", "images_per_s"} < lines[0].keys()


def test_the_weights_open_with_their_classes_and_settings(config, tmp_path, scenes):
    train(config, console=quiet())
    model = create_model(config.model, weights=tmp_path / "run" / "last.safetensors")
    dataset = open_dataset(scenes, "train")
    assert model.class_names == dataset.class_names
    assert model.category_ids == dataset.category_ids
    assert model.settings.fpn_channels == 16


def test_training_learns(config):
    console = quiet()
    train(replace(config, epochs=8, batch_size=3, lr=1e-3, flip=0.0), console=console)
    losses = [line["loss"] for line in read_record(f"{config.out}/metrics.jsonl") if line["kind"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_resuming_where_there_is_nothing_starts_afresh_and_says_so(config):
    console = quiet()
    train(config, resume=True, console=console)
    assert "starts afresh" in console.file.getvalue()


def test_resuming_with_other_settings_is_refused(config):
    train(config, console=quiet())
    with pytest.raises(ValueError, match=r"^batch_size: .* was trained with 2, got 3"):
        train(replace(config, batch_size=3), resume=True, console=quiet())


def test_resuming_with_another_recipe_is_refused(config):
    train(config, console=quiet())
    changes = {"offset_lr_factor": 1.0, "weight_decay": 0.0, "flip": 0.0, "lr_drops": (0.5,), "mimic": True}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=rf"^{name}: .* was trained with"):
            train(replace(config, **{name: value}), resume=True, console=quiet())


def test_resuming_with_more_epochs_learns_at_the_longer_runs_rate(config):
    train(config, console=quiet())
    longer = replace(config, epochs=2)
    train(longer, resume=True, console=quiet())
    lines = read_record(f"{config.out}/metrics.jsonl")
    assert lines[2]["lr"] == config.lr / 10
    assert [line["lr"] for line in lines[3:]] == [config.lr * lr_factor(step, 6, longer) for step in (3, 4, 5)]
    assert lines[3]["lr"] == config.lr


def test_resuming_with_fewer_epochs_than_are_done_trains_no_more(config):
    train(replace(config, epochs=2), figures, console=quiet())
    console = quiet()
    assert train(replace(config, epochs=1), figures, resume=True, console=console) == {"bbox": {"AP": 0.5}}
    lines = read_record(f"{config.out}/metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines][-2:] == [("train", 6), ("val", 6)]
    assert "Evaluated already" in console.file.getvalue()


def test_what_evaluates_may_copy_and_save_the_model(config, tmp_path):
    def evaluate(model):
        torch.save(copy.deepcopy(model), tmp_path / "model.pt")
        return figures(model)

    train(config, evaluate, console=quiet())
    assert (tmp_path / "model.pt").is_file()


def test_a_short_side_beyond_the_longest_is_warned_of(config):
    with pytest.warns(UserWarning, match=r"^multi_scale: 160 is more than max_size, 128, lets a short side have$"):
        train(replace(config, max_size=128, multi_scale=(48, 160)), console=quiet())


def test_a_run_that_comes_to_nothing_puts_the_earlier_one_back(config, tmp_path, scenes):
    train(config, console=quiet())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "train" / "000003.jpg").write_bytes(b"not a picture")
    with pytest.raises(OSError, match=r"000003\.jpg"):
        train(replace(config, data=str(data)), console=quiet())
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_many_processes_need_torchrun(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"WORLD_SIZE: is 4, but RANK is not set; start the processes by torchrun"):
        train(config, console=quiet())
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(ValueError, match=r"WORLD_SIZE: expected the number of processes, .*'four'"):
        train(config, console=quiet())


def test_the_first_line_is_not_folded(config):
    console = Console(file=io.StringIO(), width=40)
    train(config, console=console)
    assert console.file.getvalue().splitlines()[0].endswith(config.out)


def test_an_evaluation_is_checked_before_the_first_step(config, tmp_path):
    class Evaluate:
        def check(self, model):
            raise ValueError(f"val: not for {model.class_names}")

        def __call__(self, model):
            raise AssertionError(model)

    with pytest.raises(ValueError, match="val: not for"):
        train(config, Evaluate(), console=quiet())
    assert not (tmp_path / "run").exists()


class NeverOpened:
    """An evaluation whose data must not be opened, since that may draw or convert it."""

    def open(self):
        raise AssertionError("opened")

    def __call__(self, model):
        raise AssertionError(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "mask_rcnn_r18"}, r"mask_rcnn_r18"),
        ({"overrides": {"fpn_chanels": 16}}, r"fpn_chanels"),
        ({"device": "cuda:99"}, r"^device: "),
        ({"device": "abacus"}, r"^device: expected cpu, cuda or cuda:N, got 'abacus'"),
        ({"weights": "nowhere.safetensors"}, r"^weights: .*nowhere\.safetensors"),
        ({"weights_backbone": "nowhere.pth"}, r"^weights_backbone: .*nowhere\.pth"),
        ({"amp": "fp16", "device": "cpu"}, r"^amp: fp16 needs a CUDA device"),
    ],
    ids=str,
)
def test_what_can_be_wrong_without_the_data_is_told_before_any_is_opened(config, tmp_path, change, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message) as caught:
        train(replace(config, data=str(tmp_path / "nowhere"), **change), NeverOpened(), console=quiet())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_data_to_evaluate_on_is_opened_before_the_training_data(config, tmp_path):
    class Evaluate(NeverOpened):
        def open(self):
            raise ValueError("val: has no masks")

    with pytest.raises(ValueError, match="val: has no masks"):
        train(replace(config, data=str(tmp_path / "nowhere")), Evaluate(), console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_second_run_keeps_the_first(config, tmp_path):
    for _ in range(2):
        console = quiet()
        train(config, console=console)
    assert "was moved to" in console.file.getvalue()
    assert len(list((tmp_path / "run").glob("run-*/last.safetensors"))) == 1


def test_bf16_trains_close_to_float32(config, tmp_path):
    train(config, console=quiet())
    train(replace(config, out=str(tmp_path / "bf16"), amp="bf16"), console=quiet())
    exact, rough = (read_record(tmp_path / run / "metrics.jsonl") for run in ("run", "bf16"))
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    assert rough[0]["loss"] != exact[0]["loss"]


@pytest.fixture
def fp16(config, monkeypatch):
    """Settings of a run in float16, here allowed on the CPU: autocast and scaler are those of CUDA."""
    monkeypatch.setattr("torchdcn.training.start.find_device", lambda *_: torch.device("cpu"))
    return replace(config, amp="fp16", clip=1e9)


def scales(monkeypatch, start):
    """Has every scaler begin with a scale."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        "torchdcn.training.start.torch.amp.GradScaler",
        lambda device, enabled: scaler(device, enabled=enabled, init_scale=start),
    )


def test_fp16_scales_its_loss_and_records_the_gradient_as_it_is(config, fp16, tmp_path, monkeypatch):
    scales(monkeypatch, 16.0)
    train(replace(fp16, out=str(tmp_path / "fp16")), console=quiet())
    train(replace(config, clip=1e9), console=quiet())
    exact, rough = (read_record(tmp_path / run / "metrics.jsonl") for run in ("run", "fp16"))
    assert rough[0]["gradient_norm"] == pytest.approx(exact[0]["gradient_norm"], rel=0.1)
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    assert [line["passed_over"] for line in rough] == [0, 0, 0]
    assert [line["scale"] for line in rough] == [16, 16, 16]


def test_fp16_passes_over_steps_that_overflow_and_says_so(fp16, monkeypatch):
    scales(monkeypatch, 2.0**40)
    train(replace(fp16, log_every=2), console=quiet())
    text = (Path(fp16.out) / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    first, last = read_record(Path(fp16.out) / "metrics.jsonl")
    assert (first["passed_over"], last["passed_over"]) == (1, 1)
    assert "gradient_norm" not in first
    assert last["scale"] == 2.0**38  # as it was before the third step


def test_fp16_that_overflows_for_ever_ends_the_run(fp16, monkeypatch):
    scales(monkeypatch, 2.0**100)
    monkeypatch.setattr("torchdcn.training.loop.MAX_OVERFLOWS", 2)
    with pytest.raises(FloatingPointError, match=r"^step 2: the gradient has not been finite for 2 steps, however"):
        train(fp16, console=quiet())


def test_fp16_resumes_to_the_same_bits(fp16, tmp_path, monkeypatch):
    scales(monkeypatch, 2.0**40)
    whole = replace(fp16, epochs=2, out=str(tmp_path / "whole"))
    train(whole, console=quiet())
    for epochs in (1, 2):
        train(replace(fp16, epochs=epochs), resume=epochs == 2, console=quiet())
    one, other = (read_record(tmp_path / run / "metrics.jsonl") for run in ("whole", "run"))
    assert [line["scale"] for line in one] == [2.0 ** (40 - step) for step in range(6)]
    assert [line["scale"] for line in other] == [line["scale"] for line in one]
    assert [line["loss"] for line in other] == [line["loss"] for line in one]


def test_fp16_without_cuda_is_refused(config):
    with pytest.raises(ValueError, match=r"^amp: fp16 needs a CUDA device"):
        train(replace(config, amp="fp16", device="cpu"), console=quiet())


def test_data_without_masks_trains_boxes_only(config, tmp_path, scenes):
    import json

    data = shutil.copytree(scenes, tmp_path / "data")
    for file in (data / "annotations").iterdir():
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no masks.*faster_rcnn"):
        train(replace(config, data=str(data)), console=quiet())
    overrides = {k: v for k, v in config.overrides.items() if "mask" not in k}
    train(replace(config, data=str(data), model="faster_rcnn_r18_fpn", overrides=overrides), console=quiet())
