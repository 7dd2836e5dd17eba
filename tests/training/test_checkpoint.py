import os
import signal

import pytest
import torch
from torch import nn

from torchdcn.training import TrainConfig, TrainState, read_checkpoint, restore, save_checkpoint
from torchdcn.training.files import write_atomically
from torchdcn.training.recipes import optimizer, schedule
from torchdcn.training.signals import stop_requests

CONFIG = TrainConfig("d", "m", "o")


def state(width=4):
    model = nn.Linear(3, width)
    optimiser = optimizer(model, CONFIG)
    return TrainState(model, optimiser, schedule(optimiser, 50, CONFIG), torch.amp.GradScaler("cpu", enabled=False))


def train(run, steps):
    for _ in range(steps):
        run.optimizer.zero_grad()
        run.model(torch.rand(5, 3)).square().mean().backward()
        run.optimizer.step()
        run.scheduler.step()
        run.step += 1


def test_a_restored_run_goes_on_to_the_same_bits(tmp_path):
    torch.manual_seed(0)
    run = state()
    train(run, 3)
    save_checkpoint(tmp_path / "checkpoint.pt", run, CONFIG.to_dict())
    train(run, 3)
    other = state()
    restore(other, read_checkpoint(tmp_path / "checkpoint.pt"))
    assert other.step == 3
    train(other, 3)
    assert torch.equal(other.model.weight, run.model.weight)
    assert other.scheduler.get_last_lr() == run.scheduler.get_last_lr()


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(), CONFIG.to_dict())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint.pt: damaged, or not a checkpoint") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this version"):
        read_checkpoint(path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", state(), CONFIG.to_dict())
    with pytest.raises(ValueError, match="does not fit the model"):
        restore(state(width=6), read_checkpoint(tmp_path / "checkpoint.pt"))


def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("older")

    def half(file):
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_ctrl_c_is_noted_and_the_second_one_interrupts():
    with stop_requests() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
