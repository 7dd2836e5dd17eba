import multiprocessing
import os
import signal
from contextlib import closing

import pytest
import torch
from torch.utils.data import Dataset

from torchdcn.training.batches import BatchLoader, epoch_plan


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


def load(plan, workers, dataset=None, *, skip=False):
    """All batches of a plan, by a loader of its own."""
    with BatchLoader(dataset or Noise(), collate, workers, skip=skip) as loader:
        return list(loader.load(plan))


def same(one, other):
    return one.targets == other.targets and one.draws == other.draws and all(map(torch.equal, one.images, other.images))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_the_position_only(workers):
    plan = epoch_plan(7, 2, seed=0, epoch=0)
    whole = load(plan, workers=0)
    rest = load(plan[2:], workers)
    assert all(map(same, rest, whole[2:]))
    assert len(rest) == 2


def worker_ids():
    return sorted(process.pid for process in multiprocessing.active_children())


def test_all_epochs_have_the_same_workers_and_the_draws_of_workers_of_their_own():
    plans = [epoch_plan(7, 2, seed=0, epoch=epoch) for epoch in range(3)]
    workers = []
    with BatchLoader(Noise(), collate, workers=2) as loader:
        for plan in plans:
            for batch, expected in zip(loader.load(plan), load(plan, workers=0), strict=True):
                assert same(batch, expected)
                workers.append(worker_ids())
    assert len(workers[0]) == 2
    assert workers == workers[:1] * 12
    assert worker_ids() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_in_the_middle_leaves_nothing_to_the_next(workers):
    plans = [epoch_plan(7, 1, seed=0, epoch=epoch) for epoch in range(2)]
    with BatchLoader(Noise(), collate, workers) as loader:
        with closing(loader.load(plans[0])) as batches:
            next(batches)
        assert all(map(same, loader.load(plans[1]), load(plans[1], workers=0)))


def test_an_error_that_is_kept_does_not_keep_the_workers():
    with pytest.raises(OSError, match="can't be read") as caught:
        load(epoch_plan(7, 2, seed=0, epoch=0), 2, Noise(broken=4))
    assert caught.traceback
    assert worker_ids() == []


def test_a_closed_loader_says_so():
    with BatchLoader(Noise(), collate, workers=0) as loader:
        pass
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(loader.load([[(0, 0)]]))


def test_loading_leaves_the_generator_of_the_training_process_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(epoch_plan(7, 2, seed=0, epoch=0), workers=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_arrives_as_its_own_error(workers):
    plan = epoch_plan(7, 2, seed=0, epoch=0)
    with pytest.raises(OSError, match=r"^pictures/7\.png: can't be read; mend it, or go on .* by --skip-bad-images$"):
        load(plan, workers, Noise(broken=4))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_can_be_skipped_and_named(workers):
    plan = epoch_plan(7, 2, seed=0, epoch=0)
    batches = load(plan, workers, Noise(broken=4), skip=True)
    assert [len(batch.images) + len(batch.faults) for batch in batches] == [2, 2, 2, 1]
    assert sorted(target["index"] for batch in batches for target in batch.targets) == [0, 1, 2, 3, 5, 6]
    [fault] = [fault for batch in batches for fault in batch.faults]
    assert (fault.index, str(fault.error)) == (4, "pictures/7.png: can't be read")


def test_only_faults_of_the_image_are_skipped():
    class Broken(Noise):
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(KeyError):
        load([[(0, 0)]], 0, Broken(), skip=True)


def test_a_batch_may_have_no_share_for_this_process():
    [batch] = load([[]], workers=0)
    assert batch == ([], [], [], [])


def stop(pid):
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)


def test_workers_outlive_the_signals_that_their_whole_group_gets():
    plan = epoch_plan(7, 1, seed=0, epoch=0)
    with BatchLoader(Noise(), collate, workers=2) as loader:
        batches = loader.load(plan)
        got = [next(batches)]
        for pid in worker_ids():
            stop(pid)
        assert len(got + list(batches)) == 7
        assert len(list(loader.load(plan))) == 7
    assert worker_ids() == []


def test_workers_outlive_them_while_they_start(monkeypatch):
    start = multiprocessing.process.BaseProcess.start

    def start_and_stop(process):
        start(process)
        stop(process.pid)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_stop)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert len(load(epoch_plan(7, 1, seed=0, epoch=0), workers=2)) == 7
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert worker_ids() == []
