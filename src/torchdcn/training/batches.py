"""Shuffled batches that depend on the seed and the position alone: not on workers, and not on where a run began."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from .repeats import repeated
from .signals import STOPPING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import FrameType

    from torch import Tensor

    Sample = tuple[Tensor, dict[str, Any]]
    Collate = Callable[[Sequence[Sample]], tuple[list[Tensor], list[dict[str, Any]]]]

Draw = tuple[int, int]
"""One image of a batch: its index in the data set, and the seed of all that is drawn for it."""


@dataclass(frozen=True)
class Fault:
    """An image that can't be used."""

    index: int
    error: Exception


class Batch(NamedTuple):
    """What is there of a plan's batch."""

    images: list[Tensor]
    targets: list[dict[str, Any]]
    draws: list[Draw]  # one for each image
    faults: list[Fault]  # in the place of the others


def epoch_plan(
    images: int, batch_size: int, seed: int, epoch: int, factors: Sequence[float] | None = None
) -> list[list[Draw]]:
    """The batches of an epoch: every image once, in an order drawn by torch's generator.

    With ``factors`` (:func:`~torchdcn.training.repeats.repeat_factors`) an image is there as often as its factor says.

    Example:
        >>> from torchdcn.training.batches import epoch_plan
        >>> [len(batch) for batch in epoch_plan(images=5, batch_size=2, seed=0, epoch=0)]
        [2, 2, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    # Neighbouring seeds and epochs must not share streams, so an epoch's own seed is drawn, not computed.
    generator.manual_seed(int(torch.randint(2**31, (epoch + 1,), generator=generator)[-1]))
    order = torch.randperm(images, generator=generator) if factors is None else repeated(factors, generator)
    seeds = torch.randint(2**31, (len(order),), generator=generator).tolist()
    draws = list(zip(order.tolist(), seeds, strict=True))
    return [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]


class _Seeded(Dataset[Any]):
    """Reads a draw under its own seed. An error travels as a value, so that it arrives without a worker's traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> tuple[Draw, Sample | Exception]:
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return draw, self.dataset[index]
            except Exception as error:
                return draw, error


class _Collate:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[tuple[Draw, Sample | Exception]]) -> Batch:
        good = [(draw, sample) for draw, sample in items if not isinstance(sample, Exception)]
        faults = [Fault(draw[0], sample) for draw, sample in items if isinstance(sample, Exception)]
        images, targets = self.collate([sample for _, sample in good]) if good else ([], [])
        return Batch(images, targets, [draw for draw, _ in good], faults)


def _leave_signals_to_the_parent(worker: int) -> None:  # noqa: ARG001  # DataLoader's signature
    """A worker that died of the signal that its whole process group got would fail the run that wants to save."""
    parent = os.getppid()

    def outlive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one comes from the loader, for a worker that hangs
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    for number in STOPPING:
        signal.signal(number, outlive if number == signal.SIGTERM else signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # what came since the start was waiting


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals to stop wait: here until the end, and in processes that are started meanwhile until those are ready."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def load_batches(
    dataset: Dataset[Any],
    plan: list[list[Draw]],
    collate: Collate,
    workers: int,
    *,
    pin_memory: bool = False,
    skip: bool = False,
) -> Generator[Batch]:
    """Yields the plan's batches, loaded by ``workers`` processes ahead of time (0: by this one).

    Args:
        dataset: Where a draw's index leads to.
        plan: The batches; one may be empty.
        collate: Makes images and targets of samples.
        workers: How many.
        pin_memory: Load into memory that a GPU copies from faster.
        skip: Leave out what can't be read (OSError, ValueError) and name it in the batch's ``faults``.

    Raises:
        Exception: Whatever the data set raised for an image, at that image's batch.
    """
    loader: DataLoader[Any] = DataLoader(
        _Seeded(dataset),
        batch_sampler=plan,
        num_workers=min(workers, len(plan)),
        collate_fn=_Collate(collate),
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # else it draws from the global one, which a resumed run would do once more
    )
    with _signals_wait():
        batches = iter(loader)
    for batch in batches:
        for fault in batch.faults:
            of_reading = isinstance(fault.error, (OSError, ValueError))
            if of_reading and not skip:
                kind = OSError if isinstance(fault.error, OSError) else ValueError
                raise kind(
                    f"{fault.error}; mend it, or go on without such images by --skip-bad-images"
                ) from fault.error
            if not of_reading:
                raise fault.error
        yield batch
