"""How much memory an operator takes beyond its inputs, outputs and gradients.

On a CPU the operating system is asked: each contender runs once in a process of its own, and what counts is how far the
process grows at its largest. A new process, because buffers that live on from an earlier call would hide there. Linux
only: other systems don't let a process take its peak anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .contenders import Shape, operator_contenders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WARM_UP = Shape(4, 5, 5)
"""Small in every way: it loads what is loaded once and leaves the threads' buffers small."""


@dataclass(frozen=True)
class Job:
    """One contender of :func:`operator_contenders`, on one shape."""

    contender: str
    shape: Shape
    training: bool
    dtype: str = "float32"


def can_measure(device: str = "cpu") -> bool:
    """Whether memory can be measured here."""
    return device.startswith("cuda") or os.access("/proc/self/clear_refs", os.W_OK)


def extra_memory(
    jobs: Sequence[Job], threads: int, device: str = "cpu", progress: Callable[[int, int], object] | None = None
) -> list[int | None]:
    """Bytes beyond inputs, outputs and gradients that one call takes at its peak.

    Args:
        jobs: What to call.
        threads: How many threads torch has.
        device: Where to run. On CUDA torch's allocator is asked, and what libraries take for themselves isn't seen.
        progress: Called with (done, in all).

    Returns:
        A figure for each job, or None where there is none: the contender can't run, or memory can't be measured here.
        If the process that measures fails, a warning says why.
    """
    if not jobs or not can_measure(device):
        return [None] * len(jobs)
    found: list[int | None] = []
    for one in _cuda_growths(jobs, device) if device.startswith("cuda") else _growths(jobs, threads):
        found.append(one)
        if progress:
            progress(len(found), len(jobs))
    return [*found, *[None] * (len(jobs) - len(found))]


def _cuda_growths(jobs: Sequence[Job], device: str) -> Iterator[int | None]:
    for job in jobs:
        yield _cuda_growth(job, device)


def _growths(jobs: Sequence[Job], threads: int) -> Iterator[int | None]:
    """Asks a process that forks one for each job."""
    request = json.dumps({"threads": threads, "jobs": [asdict(job) for job in jobs]})
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(  # noqa: S603  # this very module
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=worker_environment(),
        ) as worker,
    ):  # fmt: skip
        assert worker.stdin is not None  # noqa: S101  # both are pipes
        assert worker.stdout is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # it has failed already
            worker.stdin.write(request)
            worker.stdin.close()
        for line in worker.stdout:
            yield json.loads(line)
        if worker.wait():
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or [f"exit code {worker.returncode}"])[-1]
            warnings.warn(f"memory isn't measured: the process that does it failed ({reason})", stacklevel=3)


def worker_environment() -> dict[str, str]:
    """The environment of a process that measures its own memory.

    Freed memory goes back at once, so that none of what a call takes comes from an earlier one's. No other threads than
    torch's, for only a process of one thread may fork.
    """
    tunables = [os.environ.get("GLIBC_TUNABLES"), "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"]
    return os.environ | {"GLIBC_TUNABLES": ":".join(filter(None, tunables)), "OPENBLAS_NUM_THREADS": "1"}


def _call(job: Job, shape: Shape, device: str = "cpu") -> Callable[[], Any] | None:
    lineup = operator_contenders(shape, job.training, getattr(torch, job.dtype), True, device, [job.contender])
    return lineup.calls.get(job.contender)


def _size(job: Job, result: Any) -> int:
    """Bytes of what a call returns, and of the output where it returns gradients."""
    parts = result if isinstance(result, (tuple, list)) else [result]
    size = sum(int(part.nbytes) for part in parts)
    if job.training:  # the output has the dtype of the gradients
        shape = job.shape
        size += shape.batch * shape.channels * shape.output_size[0] * shape.output_size[1] * parts[0].element_size()
    return size


def _cuda_growth(job: Job, device: str) -> int | None:
    call = _call(job, job.shape, device)
    if call is None:
        return None
    call()  # libraries choose and compile their kernels
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before - _size(job, result))


def _growth(job: Job, threads: int) -> int | None:
    torch.set_num_threads(threads)
    torch.ones(threads << 17).mul_(2)  # starts them
    warm_up = _call(job, WARM_UP)
    if warm_up is None:
        return None
    warm_up()
    # onnxruntime is held against ours before it may run, with buffers of ours that stay; they aren't in its growth.
    call = _call(job, job.shape)
    if call is None:
        return None
    growth, result = peak_growth(call)
    return max(0, growth - _size(job, result))


def peak_growth(call: Callable[[], Any]) -> tuple[int, Any]:
    """By how many bytes this process grows at most while a call runs, and the call's result. Linux only."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, code = _status("VmRSS"), _status("RssFile")
    result = call()
    # Libraries' code that was loaded on the way is no memory of the call's. It stays, so the end counts.
    return max(0, _status("VmHWM") - before - (_status("RssFile") - code)), result


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def _in_a_child(job: Job, threads: int) -> int | None:
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(write, json.dumps(_growth(job, threads)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    growth: int | None = json.loads(text) if text else None
    return growth


def main() -> None:
    """Measures the jobs that stdin lists, a line of JSON for each."""
    request = json.load(sys.stdin)
    for fields in request["jobs"]:
        shape: dict[str, Any] = fields.pop("shape")  # where pairs have become lists
        pairs = {name: tuple(pair) for name, pair in shape.items() if isinstance(pair, list)}
        job = Job(**fields, shape=Shape(**(shape | pairs)))
        print(json.dumps(_in_a_child(job, request["threads"])), flush=True)  # noqa: T201  # read by extra_memory


if __name__ == "__main__":
    main()
