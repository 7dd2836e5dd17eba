import multiprocessing
import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from torchdcn.training.batches import epoch_plan, load_batches


class Noise(Dataset):
    """Items that depend on the index and on torch's generator, as an augmented image does."""

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 7

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError("pictures/7.png: can't be read")
        return torch.rand(2) + index, {"index": index}


def collate(samples):
    return [s[0] for s in samples], [s[1] for s in samples]


def test_an_epoch_has_every_image_once_and_another_order_each_time():
    plans = [epoch_plan(7, 2, seed=3, epoch=e) for e in range(3)]
    orders = [[index for batch in plan for index, _ in batch] for plan in plans]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [len(batch) for batch in plans[0]] == [2, 2, 2, 1]
    assert epoch_plan(7, 2, seed=3, epoch=1) == plans[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_the_position_only(workers):
    plan = epoch_plan(7, 2, seed=0, epoch=0)
    whole = list(load_batches(Noise(), plan, collate, workers=0))
    rest = list(load_batches(Noise(), plan[2:], collate, workers=workers))
    for batch, expected in zip(rest, whole[2:], strict=True):
        assert batch.targets == expected.targets
        assert batch.draws == expected.draws
        assert all(map(torch.equal, batch.images, expected.images))


def test_loading_leaves_the_generator_of_the_training_process_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(load_batches(Noise(), epoch_plan(7, 2, seed=0, epoch=0), collate, workers=0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_arrives_as_its_own_error(workers):
    plan = epoch_plan(7, 2, seed=0, epoch=0)
    with pytest.raises(OSError, match=r"^pictures/7\.png: can't be read; mend it, or go on .* by --skip-bad-images$"):
        list(load_batches(Noise(broken=4), plan, collate, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_can_be_skipped_and_named(workers):
    plan = epoch_plan(7, 2, seed=0, epoch=0)
    batches = list(load_batches(Noise(broken=4), plan, collate, workers, skip=True))
    assert [len(batch.images) + len(batch.faults) for batch in batches] == [2, 2, 2, 1]
    assert sorted(target["index"] for batch in batches for target in batch.targets) == [0, 1, 2, 3, 5, 6]
    [fault] = [fault for batch in batches for fault in batch.faults]
    assert (fault.index, str(fault.error)) == (4, "pictures/7.png: can't be read")


def test_only_faults_of_the_image_are_skipped():
    class Broken(Noise):
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(KeyError):
        list(load_batches(Broken(), [[(0, 0)]], collate, workers=0, skip=True))


def test_a_batch_may_have_no_share_for_this_process():
    [batch] = load_batches(Noise(), [[]], collate, workers=0)
    assert batch == ([], [], [], [])


def stop(pid):
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)


def test_workers_outlive_the_signals_that_their_whole_group_gets():
    plan = epoch_plan(7, 1, seed=0, epoch=0)
    batches = load_batches(Noise(), plan, collate, workers=2)
    got = [next(batches)]
    for child in multiprocessing.active_children():
        stop(child.pid)
    assert len(got + list(batches)) == 7
    assert multiprocessing.active_children() == []


def test_workers_outlive_them_while_they_start(monkeypatch):
    start = multiprocessing.process.BaseProcess.start

    def start_and_stop(process):
        start(process)
        stop(process.pid)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_stop)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert len(list(load_batches(Noise(), epoch_plan(7, 1, seed=0, epoch=0), collate, workers=2))) == 7
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert multiprocessing.active_children() == []
