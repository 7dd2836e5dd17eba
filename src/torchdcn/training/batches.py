"""Shuffled batches that depend only on the seed and the place in the run: not on workers, nor on a resume."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from .repeat_factor import draw_repeats
from .signals import STOPPING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import FrameType

    from torch import Tensor

    Sample = tuple[Tensor, dict[str, Any]]
    Collate = Callable[[Sequence[Sample]], tuple[list[Tensor], list[dict[str, Any]]]]

Draw = tuple[int, int]
"""One image of a batch: its index in the data set, and the seed of all random numbers that are drawn for it."""


@dataclass(frozen=True)
class Fault:
    """An image that can't be read, and why."""

    index: int
    error: Exception


class Batch(NamedTuple):
    """A loaded batch: its readable images with their targets and draws, and the faults of the others."""

    images: list[Tensor]
    targets: list[dict[str, Any]]
    draws: list[Draw]
    faults: list[Fault]


def epoch_plan(
    images: int, batch_size: int, seed: int, epoch: int, factors: Sequence[float] | None = None
) -> list[list[Draw]]:
    """The batches of an epoch: every image once, in an order drawn by torch's generator.

    Args:
        images: The number of images in the data set.
        batch_size: Images in a batch; the last one has what is left.
        seed: The seed of the run.
        epoch: The epoch's number, from 0.
        factors: How often to show each image (:func:`~torchdcn.training.repeat_factor.repeat_factors`).

    Example:
        >>> from torchdcn.training.batches import epoch_plan
        >>> [len(batch) for batch in epoch_plan(images=5, batch_size=2, seed=0, epoch=0)]
        [2, 2, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    # The epoch's seed is drawn, not computed: seed + epoch would give (1, 2) and (2, 1) the same order.
    generator.manual_seed(int(torch.randint(2**31, (epoch + 1,), generator=generator)[-1]))
    order = torch.randperm(images, generator=generator) if factors is None else draw_repeats(factors, generator)
    seeds = torch.randint(2**31, (len(order),), generator=generator).tolist()
    draws = list(zip(order.tolist(), seeds, strict=True))
    return [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]


class _SeededDataset(Dataset[Any]):
    """Reads each draw under its own seed. An error is returned as a value: a worker would add its traceback to it."""

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


class _BatchCollate:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[tuple[Draw, Sample | Exception]]) -> Batch:
        good = [(draw, sample) for draw, sample in items if not isinstance(sample, Exception)]
        faults = [Fault(draw[0], sample) for draw, sample in items if isinstance(sample, Exception)]
        images, targets = self.collate([sample for _, sample in good]) if good else ([], [])
        return Batch(images, targets, [draw for draw, _ in good], faults)


def _leave_signals_to_the_parent(worker: int) -> None:  # noqa: ARG001  # DataLoader's signature
    """Lets a worker live through a signal to its whole process group. If it died, the parent could not save its run."""
    parent = os.getppid()

    def outlive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the loader sends a second one to a worker that hangs
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    for number in STOPPING:
        signal.signal(number, outlive if number == signal.SIGTERM else signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # delivers those that came since the worker's start


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Blocks signals to stop, here and in processes that start meanwhile, until those have set their handlers."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Plan:
    """The batch sampler of a loader that lives for many epochs: it gives the batches of the present one."""

    def __init__(self) -> None:
        self.batches: list[list[Draw]] = []

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class BatchLoader:
    """Loads batches ahead of time in worker processes, which live until :meth:`close`; a context manager.

    The workers start with the first plan and serve all later ones: starting them takes longer than a small epoch. Close
    the loader before Python exits, which would wait for them: they outlive the SIGTERM that Python sends to them then.

    Args:
        dataset: What the index of a draw refers to.
        collate: Makes a list of images and a list of targets of samples.
        workers: The number of worker processes; 0: this process loads.
        pin_memory: Whether to load into page-locked memory, from which copies to a GPU are faster.
        skip: Whether to leave out images that can't be read (OSError, ValueError) and name them in the batch's
            ``faults``.

    Example:
        >>> from torchdcn.training.batches import BatchLoader
        >>> images = [("image 0", "target 0"), ("image 1", "target 1")]
        >>> with BatchLoader(images, lambda samples: tuple(zip(*samples)), workers=0) as loader:
        ...     [batch.images for batch in loader.load([[(1, 0)], [(0, 0), (1, 0)]])]
        [('image 1',), ('image 0', 'image 1')]
    """

    def __init__(
        self, dataset: Any, collate: Collate, workers: int, *, pin_memory: bool = False, skip: bool = False
    ) -> None:
        self.skip = skip
        self._plan = _Plan()
        self._running = False
        self._loader: DataLoader[Any] | None = DataLoader(
            _SeededDataset(dataset),
            batch_sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_BatchCollate(collate),
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # else the loader draws from the global one, once more in a resumed run
        )

    def load(self, plan: list[list[Draw]]) -> Generator[Batch]:
        """Yields the batches of a plan. One plan is loaded at a time: to its end, or until the generator is closed.

        Args:
            plan: The draws of each batch, which may be none.

        Raises:
            Exception: What the data set raised for an image, at the batch of that image.
            RuntimeError: The loader is closed.
        """
        if self._loader is None:
            raise RuntimeError("the loader is closed")
        self._plan.batches = plan
        with nullcontext() if self._running else _stop_signals_blocked():
            batches = iter(self._loader)
        self._running = True
        try:
            for batch in batches:
                self._raise_fault(batch)
                yield batch
        finally:
            del batches  # an error's traceback keeps this frame, which must not keep the workers

    def _raise_fault(self, batch: Batch) -> None:
        for fault in batch.faults:
            if not isinstance(fault.error, (OSError, ValueError)):
                raise fault.error
            if not self.skip:
                kind = OSError if isinstance(fault.error, OSError) else ValueError
                raise kind(
                    f"{fault.error}; mend it, or go on without such images by --skip-bad-images"
                ) from fault.error

    def close(self) -> None:
        """Ends the workers."""
        self._loader = None  # torch's loader ends its workers when nothing refers to it any more

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
