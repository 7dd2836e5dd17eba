"""Shuffled batches that depend on the seed and the position alone: not on workers, and not on where a run began."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    Sample = tuple[Tensor, dict[str, Any]]
    Batch = tuple[list[Tensor], list[dict[str, Any]]]

Draw = tuple[int, int]
"""One image of a batch: its index in the data set, and the seed of its augmentation."""


def epoch_plan(images: int, batch_size: int, seed: int, epoch: int) -> list[list[Draw]]:
    """The batches of an epoch: every image once, in an order drawn by torch's generator.

    Example:
        >>> from torchdcn.training.batches import epoch_plan
        >>> [len(batch) for batch in epoch_plan(images=5, batch_size=2, seed=0, epoch=0)]
        [2, 2, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    # Neighbouring seeds and epochs must not share streams, so an epoch's own seed is drawn, not computed.
    generator.manual_seed(int(torch.randint(2**31, (epoch + 1,), generator=generator)[-1]))
    order = torch.randperm(images, generator=generator).tolist()
    seeds = torch.randint(2**31, (images,), generator=generator).tolist()
    draws = list(zip(order, seeds, strict=True))
    return [draws[i : i + batch_size] for i in range(0, images, batch_size)]


class _Seeded(Dataset[Any]):
    """Reads a draw under its own seed. An error travels as a value, so that it arrives without a worker's traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Sample | Exception:
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return self.dataset[index]  # type: ignore[no-any-return]
            except Exception as error:
                return error


class _Collate:
    def __init__(self, collate: Callable[[Sequence[Sample]], Batch]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Sample | Exception]) -> Batch | Exception:
        for sample in samples:
            if isinstance(sample, Exception):
                return sample
        return self.collate(samples)  # type: ignore[arg-type]  # no errors are left


def _leave_ctrl_c_to_the_parent(worker: int) -> None:  # noqa: ARG001  # DataLoader's signature
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def load_batches(
    dataset: Dataset[Any],
    plan: list[list[Draw]],
    collate: Callable[[Sequence[Sample]], Batch],
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yields the plan's batches, loaded by ``workers`` processes ahead of time (0: by this one).

    Raises:
        Exception: Whatever the data set raised for an image, at that image's batch.
    """
    loader: DataLoader[Any] = DataLoader(
        _Seeded(dataset),
        batch_sampler=plan,
        num_workers=min(workers, len(plan)),
        collate_fn=_Collate(collate),
        pin_memory=pin_memory,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        generator=torch.Generator(),  # else it draws from the global one, which a resumed run would do once more
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
