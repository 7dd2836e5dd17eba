"""The processes of a run: ``torchrun`` starts them, ``torch.distributed`` connects them, errors end all of them."""

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

from ..ops._torch_private import BatchNorm
from .signals import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    T = TypeVar("T")

TIMEOUT = timedelta(minutes=15)
"""How long a process waits for the others. Rank 0 computes AP of COCO's val in less; the others wait for it."""


class RemoteError(Exception):
    """Another process of the run has met an error and reports it; this process only ends."""

    quiet = True


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. A run of one process needs no process group.

    Attributes:
        rank: The number of this process. Rank 0 writes all files and all output.
        size: The number of processes on all hosts (the world size).
        local_rank: The number of this process on its host.

    Example:
        >>> from torchdcn.training.distributed import Processes
        >>> Processes(rank=1, size=2).shard(["a", "b", "c", "d", "e"])
        ['b', 'd']
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """This process's part of ``items``, which are the same in all processes. The parts don't overlap."""
        return list(items[self.rank :: self.size])

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, one for each value."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in rank 0; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.first else []
        dist.gather_object(value, values if self.first else None)
        return values

    def broadcast_from_first(self, value: T) -> T:
        """Rank 0's value, in all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def raise_on_all(self, error: Exception | None) -> None:
        """Ends all processes if one of them has met an error; else they would wait for it until the timeout.

        Args:
            error: What this process has met, if anything.

        Raises:
            Exception: ``error``, in the lowest rank that has one.
            Interrupted: In the other processes, if that rank has met this.
            RemoteError: In the other processes, if it has met anything else.
        """
        reports = self.all_gather(None if error is None else (str(error), getattr(error, "signal", None)))
        source = next((rank for rank, report in enumerate(reports) if report is not None), None)
        if source is None:
            return
        if error is not None and source == self.rank:
            raise error
        text, signal = reports[source] or ("", None)
        raise RemoteError(f"rank {source}: {text}") if signal is None else Interrupted(text, signal)

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """A block that ends in all processes if it raises in one: see :meth:`raise_on_all`."""
        if self.size == 1:
            yield
            return
        met = None
        try:
            yield
        except Exception as error:
            met = error
        self.raise_on_all(met)

    def first_on_host_then_rest(self, work: Callable[[], T]) -> T:
        """Calls ``work`` in one process of each host, then in the others, which find its downloads and caches."""
        for first_on_host in (True, False):
            with self.raise_together():
                if first_on_host == (self.local_rank == 0):
                    result = work()
        return result

    def data_parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wraps the model so that its gradients are averaged over all processes."""
        if self.size == 1:
            return model
        batch_norm = any(m.training and isinstance(m, BatchNorm) for m in model.modules())
        # Every parameter of a detector has a gradient in every step (of zeros where there is nothing to learn from).
        # So find_unused_parameters, which walks the whole graph at each step, is not needed.
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=batch_norm
        )

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Gives all processes rank 0's buffers (statistics of batch normalisation), which are those that are saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def check_same_weights(self, model: nn.Module) -> None:
        """Compares the weights of all processes, to the bit.

        Raises:
            ValueError: In rank 0: they differ, which is a fault of the machine more likely than of the program.
            RemoteError: In the other processes.
        """
        if self.size == 1:
            return
        words = [p.detach().float().flatten().view(torch.int32).sum(dtype=torch.int64) for p in model.parameters()]
        sums = self.all_gather(torch.stack(words).tolist())
        if different := [rank for rank, other in enumerate(sums) if other != sums[0]]:
            text = f"the processes of rank 0 and {', '.join(map(str, different))} hold different weights"
            raise ValueError(text) if self.first else RemoteError(text)


def world_size() -> int:
    """How many processes ``torchrun`` has started for this run; 1 without it.

    Raises:
        ValueError: The environment variable WORLD_SIZE is no number.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit():
        raise ValueError(f"WORLD_SIZE: expected the number of processes, as torchrun sets it, got {text!r}")
    return max(1, int(text))


def current_processes() -> Processes:
    """The processes of the present process group, or of a run of one process."""
    if not dist.is_available() or not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(cuda: bool) -> Iterator[Processes]:
    """Connects the processes of the run for the length of the block. A process group that exists already is used.

    Args:
        cuda: Whether the run is on GPUs. NCCL then sums tensors on GPUs; gloo carries everything else.

    Raises:
        ValueError: There should be other processes, but an environment variable that torchrun sets is missing.
        ConnectionError: Another process has ended.
    """
    if world_size() == 1 or dist.is_initialized():  # a caller's process group is the caller's to destroy
        yield current_processes()
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(f"WORLD_SIZE: is {world_size()}, but {name} is not set; start the processes by torchrun")
    done = False
    try:
        _init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        yield current_processes()
        done = True
    except RuntimeError as error:
        if not _is_network_error(error):
            raise
        raise ConnectionError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} has lost the other processes ({_reason(error)}); "
            "torchrun's report names the one that ended first; go on with --resume from the last checkpoint"
        ) from error
    finally:
        # After an error NCCL would wait for processes that have ended. Its group ends with this process.
        if dist.is_initialized() and (done or not cuda):
            dist.destroy_process_group()


def _init_process_group(backend: str) -> None:
    """``dist.init_process_group`` under a prefix of the store that belongs to this start of the processes alone.

    When torchrun restarts the processes, its store still holds the addresses of the dead ones, which the new ones would
    try to reach. No number that torchrun gives is the same on all hosts and different after each restart, so the
    processes agree on a prefix of their own.
    """
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if rank == 0:
        _job_token[:] = [store.compare_set("torchdcn/job", "", uuid.uuid4().hex).decode()]
    prefix = _agree_on_prefix(store, rank, size)
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # public, by torch's documentation
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def _agree_on_prefix(store: Any, rank: int, size: int) -> str:
    """A prefix that all processes of this start have in common, and those of no other start.

    Every other rank asks under a random token, which no dead process can have used. Rank 0 answers every token that it
    finds, those of dead processes too, until all ranks have confirmed the prefix that it has drawn.
    """
    token, base, deadline = uuid.uuid4().hex, "torchdcn", time.monotonic() + TIMEOUT.total_seconds()
    if rank:
        store.set(f"{base}/ask/{rank}", token)
        prefix: str = store.get(f"{base}/answer/{token}").decode()
        store.set(f"{base}/confirmed/{prefix}/{rank}", "")
        return prefix
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"{base}/ask/{other}"]):
                store.set(f"{base}/answer/{store.get(f'{base}/ask/{other}').decode()}", token)
            if store.check([f"{base}/confirmed/{token}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise dist.DistNetworkError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(0.02)
    return token


def _is_network_error(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _reason(error: Exception) -> str:
    """The first sentence of a message of gloo or NCCL, without the source line that it begins with."""
    return str(error).splitlines()[0].rpartition(".cc:")[2].split("] ", 1)[-1].split(". ")[0][:200]


def job_id() -> list[str] | None:
    """Identifies this call of ``torchrun``, with all its restarts; None without torchrun.

    The name of torchrun's run, and the token that rank 0 has left in torchrun's store.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    run = os.environ["TORCHELASTIC_RUN_ID"]
    return [run if run not in ("", "none") else f"{socket.gethostname()}:{os.getppid()}", *_job_token]


def is_restart_of(saved: list[str] | None) -> bool:
    """Whether ``torchrun`` has restarted the job whose :func:`job_id` was ``saved``.

    Torchrun's count of restarts tells, or the token: the count stays the same on a host whose processes ended because
    those of another host did.
    """
    now = job_id()
    if now is None or saved is None:
        return False
    counted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")
    return (counted and now[0] == saved[0]) or (len(now) == 2 and now[1:] == saved[1:])


_job_token: list[str] = []
