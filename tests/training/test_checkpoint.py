import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from torchdcn.training import TrainConfig, TrainState, lr_factor, read_checkpoint, restore, save_checkpoint
from torchdcn.training.checkpoint import random_state, read_last_good
from torchdcn.training.optim import build_optimizer, build_schedule

CONFIG = TrainConfig("d", "m", "o")


def state(width=4, config=CONFIG):
    model = nn.Linear(3, width)
    optimiser = build_optimizer(model, config)
    return TrainState(
        model, optimiser, build_schedule(optimiser, 50, config), torch.amp.GradScaler("cpu", enabled=False)
    )


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


def test_a_restored_run_has_the_rates_of_its_own_settings(tmp_path):
    run = state()
    train(run, 3)
    save_checkpoint(tmp_path / "checkpoint.pt", run, CONFIG.to_dict())
    config = replace(CONFIG, lr=0.5, warmup=0.1)
    other = state(config=config)
    restore(other, read_checkpoint(tmp_path / "checkpoint.pt"))
    for step in range(3, 7):
        assert {group["lr"] for group in other.optimizer.param_groups} == {0.5 * lr_factor(step, 50, config)}
        train(other, 1)


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


def flip_a_byte(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.01, 0.5, 0.9, 0.999])
def test_one_wrong_bit_anywhere_is_found(tmp_path, place):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(width=400), CONFIG.to_dict())
    read_checkpoint(path)
    flip_a_byte(path, place)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: damaged"):
        read_checkpoint(path)


def test_a_file_without_its_checksum_is_damaged(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(), CONFIG.to_dict())
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(ValueError, match="its checksum is not there"):
        read_checkpoint(path)


def test_the_last_two_are_kept_and_the_older_one_serves_where_the_newer_is_damaged(tmp_path):
    path, run = tmp_path / "checkpoint.pt", state()
    assert read_last_good(tmp_path) is None
    for _ in range(3):
        train(run, 1)
        save_checkpoint(path, run, CONFIG.to_dict())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint-previous.pt", "checkpoint.pt"]
    content, warning = read_last_good(tmp_path)
    assert (content["step"], warning) == (3, "")
    flip_a_byte(path)
    content, warning = read_last_good(tmp_path)
    assert content["step"] == 2
    assert re.search(r"checkpoint\.pt: damaged, .*going on from .*checkpoint-previous\.pt, step 2$", warning)
    path.unlink()
    assert read_last_good(tmp_path)[0]["step"] == 2
    flip_a_byte(tmp_path / "checkpoint-previous.pt")
    with pytest.raises(ValueError, match=r"checkpoint-previous\.pt: damaged"):
        read_last_good(tmp_path)


def test_a_full_disk_leaves_both_older_files_and_says_what_is_the_matter(tmp_path, file_size_limit):
    path, run = tmp_path / "checkpoint.pt", state(width=1000)
    for _ in range(2):
        train(run, 1)
        save_checkpoint(path, run, CONFIG.to_dict())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with file_size_limit(20_000), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, run, CONFIG.to_dict())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_each_process_gets_its_own_generator_back(tmp_path):
    run, random_states = state(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random_states.append(random_state())
    save_checkpoint(tmp_path / "checkpoint.pt", run, CONFIG.to_dict(), random_states)
    content = read_checkpoint(tmp_path / "checkpoint.pt")
    for rank, seed in enumerate((1, 2)):
        restore(run, content, rank)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    torch.manual_seed(7)
    restore(run, content, rank=2)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(7)))
