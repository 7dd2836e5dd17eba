"""The processes that share a run: ``torchrun`` starts them, here they meet, agree and part."""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from .signals import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    T = TypeVar("T")

TIMEOUT = timedelta(minutes=15)
"""How long one process waits for the others: enough for AP of COCO's val on the first, which the others wait for."""


class ToldElsewhere(Exception):  # noqa: N818  # the error is another process's
    """Another process of the run has met an error, and tells it; this one only ends."""

    quiet = True


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them. One process alone is a run of its own.

    Attributes:
        rank: The number of this process. The first one writes all files and does all the talking.
        size: How many there are, on all hosts.
        local_rank: The number of this process on its host.

    Example:
        >>> from torchdcn.training.distributed import Processes
        >>> Processes(rank=1, size=2).share(["a", "b", "c", "d", "e"])
        ['b', 'd']
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of items that all have: every item is one process's."""
        return list(items[self.rank :: self.size])

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums of all processes' values, one by one."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def everyones(self, value: T) -> list[T]:
        """All processes' values, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T]:
        """All processes' values, by rank, on the first; on the others an empty list."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.first else []
        dist.gather_object(value, values if self.first else None)
        return values

    def from_first(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def agree(self, error: Exception | None) -> None:
        """Ends all processes if one has met an error, instead of letting the others wait for it.

        Raises:
            Exception: ``error``, on the first process that has one.
            Interrupted: On the others, if that is what the first one has met.
            ToldElsewhere: On the others, if it is anything else.
        """
        told = self.everyones(None if error is None else (str(error), getattr(error, "signal", None)))
        teller = next((rank for rank, each in enumerate(told) if each is not None), None)
        if teller is None:
            return
        if error is not None and teller == self.rank:
            raise error
        text, signal = told[teller] or ("", None)
        raise ToldElsewhere(f"rank {teller}: {text}") if signal is None else Interrupted(text, signal)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes come through, or none: see :meth:`agree`."""
        if self.size == 1:
            yield
            return
        met = None
        try:
            yield
        except Exception as error:
            met = error
        self.agree(met)

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does the work in each host's first process, then in its others: they find downloads and caches ready."""
        for turn in (True, False):
            with self.together():
                if turn == (self.local_rank == 0):
                    result = work()
        return result

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, whose gradients are averaged over all processes."""
        if self.size == 1:
            return model
        batch_norm = any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        # Every part of a detector takes part in every loss, with weight 0 where there is nothing to learn from, so
        # there is no search for unused parameters, which would walk the whole graph at each step.
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=batch_norm
        )

    def share_statistics(self, model: nn.Module) -> None:
        """Gives all processes the first one's statistics of normalisation, which are those that are saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def check_alike(self, model: nn.Module) -> None:
        """Sees to it that all processes hold the same weights, to the bit.

        Raises:
            ValueError: They don't: something is broken, in the machine as like as not.
        """
        if self.size == 1:
            return
        words = [p.detach().float().flatten().view(torch.int32).sum(dtype=torch.int64) for p in model.parameters()]
        sums = self.everyones(torch.stack(words).tolist())
        if strange := [rank for rank, other in enumerate(sums) if other != sums[0]]:
            text = f"the processes of rank 0 and {', '.join(map(str, strange))} hold different weights"
            raise ValueError(text) if self.first else ToldElsewhere(text)


def world_size() -> int:
    """How many processes ``torchrun`` has started for this run; 1 without it."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit():
        raise ValueError(f"WORLD_SIZE: expected the number of processes, as torchrun sets it, got {text!r}")
    return max(1, int(text))


def current() -> Processes:
    """The processes that share the run at this moment."""
    if not dist.is_available() or not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(cuda: bool) -> Iterator[Processes]:
    """Meets the other processes of the run, if there are any, for as long as the block lasts.

    Args:
        cuda: Whether gradients are on GPUs: NCCL adds them then, else gloo. All else goes by gloo.

    Raises:
        ValueError: There should be others, and nobody says where.
        ConnectionError: One of the others is gone.
    """
    if world_size() == 1 or dist.is_initialized():  # the caller's group is the caller's to end
        yield current()
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(f"WORLD_SIZE: is {world_size()}, but {name} is not set; start the processes by torchrun")
    done = False
    try:
        _meet("cpu:gloo,cuda:nccl" if cuda else "gloo")
        yield current()
        done = True
    except RuntimeError as error:
        if not _of_the_network(error):
            raise
        raise ConnectionError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} has lost the other processes ({_reason(error)}); "
            "torchrun's report names the one that ended first; go on with --resume from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized() and (
            done or not cuda
        ):  # NCCL would wait for processes that are gone; it ends with this one
            dist.destroy_process_group()


def _meet(backend: str) -> None:
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # torchrun keeps its store when it starts the processes anew, with the addresses of those that are dead in it; and
    # no number that it gives is the same on all hosts and another after each start.
    if rank == 0:
        _words[:] = [store.compare_set("torchdcn/job", "", uuid.uuid4().hex).decode()]
    name = _name_of_this_start(store, rank, size)
    store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]  # public, by torch's documentation
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def _name_of_this_start(store: Any, rank: int, size: int) -> str:
    """A name that all processes of one start agree on, and those of no other start.

    Each of the others asks under a word of its own, which no dead process can have used, and the first answers every
    word it finds, those of the dead too, until all of the living have said that they have heard.
    """
    own, prefix, deadline = uuid.uuid4().hex, "torchdcn", time.monotonic() + TIMEOUT.total_seconds()
    if rank:
        store.set(f"{prefix}/ask/{rank}", own)
        name: str = store.get(f"{prefix}/answer/{own}").decode()
        store.set(f"{prefix}/heard/{name}/{rank}", "")
        return name
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"{prefix}/ask/{other}"]):
                store.set(f"{prefix}/answer/{store.get(f'{prefix}/ask/{other}').decode()}", own)
            if store.check([f"{prefix}/heard/{own}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise dist.DistNetworkError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(0.02)
    return own


def _of_the_network(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _reason(error: Exception) -> str:
    """The first sentence of gloo's and NCCL's messages, without the line of source that they begin with."""
    return str(error).splitlines()[0].rpartition(".cc:")[2].split("] ", 1)[-1].split(". ")[0][:200]


def job() -> list[str] | None:
    """What tells this start of ``torchrun`` from others, and not from its own restarts; None without it.

    The name of its run, and a word that the first process has left in its store.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    run = os.environ["TORCHELASTIC_RUN_ID"]
    return [run if run not in ("", "none") else f"{socket.gethostname()}:{os.getppid()}", *_words]


def is_restart_of(saved: list[str] | None) -> bool:
    """Whether ``torchrun`` has restarted the very job that :func:`job` has named ``saved``.

    By its count of restarts, which stands still on a host whose processes ended because another's did; or by the word.
    """
    now = job()
    if now is None or saved is None:
        return False
    counted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")
    return (counted and now[0] == saved[0]) or (len(now) == 2 and now[1:] == saved[1:])


_words: list[str] = []
