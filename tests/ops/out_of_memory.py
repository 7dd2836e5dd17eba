"""Has the CPU kernels' allocations fail, one after the other; test_out_of_memory.py starts it under failing_memory.cpp.

Usage: LD_PRELOAD=LIBRARY python out_of_memory.py LIBRARY THREADS CALL...

Every failure has a process of its own, since threads keep their scratch memory from call to call: all are forked from
one that has imported torch and has not started OpenMP's threads. Prints one JSON object: for each call how often it
asks for memory, in how many processes it found none, and a line for each process that did not end as it should.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchdcn.ops import deform_conv2d, instruction_set

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[int], list[Tensor]]  # with so many channels

TIMEOUT = 30.0  # seconds for a process, which takes a tenth of one
EVER = 2**62
FEW, MANY = 12, 40  # channels
LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format

torch.set_num_threads(1)  # OpenMP's threads, once started, would be missing in a forked process


def draw(*shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = CONTIGUOUS) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return values.contiguous(memory_format=layout)


def convolution(
    *, backward: bool, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAST, depthwise: bool = False
) -> Call:
    """Of a map with many strips and tiles, in two deformable groups."""

    def call(channels: int) -> list[Tensor]:
        features = draw(2, channels, 30, 20, dtype=dtype, layout=layout)
        offset, mask = draw(2, 36, 30, 20, dtype=dtype).mul(2), draw(2, 18, 30, 20, dtype=dtype).sigmoid()
        weight = draw(channels, 1 if depthwise else channels, 3, 3, dtype=dtype)
        groups = channels if depthwise else 1
        arguments = [features, offset, mask, weight, [1, 1], [1, 1], [1, 1], groups, 2]
        if backward:
            cotangent = features.cos()
            return list(torch.ops.torchdcn.deform_conv2d_backward(cotangent, *arguments, [True] * 4))
        return [torch.ops.torchdcn.deform_conv2d(*arguments)]

    return call


def training_step(channels: int) -> list[Tensor]:
    """Through autograd, from the public function."""
    leaves = [draw(2, channels, 30, 20, layout=LAST), draw(2, 18, 30, 20), draw(8, channels, 3, 3)]
    output = deform_conv2d(*(leaf.requires_grad_() for leaf in leaves), padding=1)
    output.square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def pooling(*, backward: bool, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAST) -> Call:
    """Of 12 boxes on two images."""

    def call(channels: int) -> list[Tensor]:
        features = draw(2, channels, 20, 30, dtype=dtype, layout=layout)
        corners = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)) * 15
        boxes = torch.cat([torch.arange(12)[:, None] % 2, corners, corners + 9], 1).to(dtype)
        offset, mask = draw(12, 2, 2, 3, dtype=dtype), draw(12, 1, 2, 3, dtype=dtype).sigmoid()
        arguments = [features, boxes, offset, mask, [2, 3], 1.0, 0, 0.1]
        if backward:
            cotangent = draw(12, channels, 2, 3, dtype=dtype, layout=layout)
            return list(torch.ops.torchdcn.deform_roi_pool_backward(cotangent, *arguments, [True] * 3))
        return [torch.ops.torchdcn.deform_roi_pool(*arguments)]

    return call


CALLS: dict[str, Call] = {
    "convolution": convolution(backward=False),
    "convolution, contiguous": convolution(backward=False, layout=CONTIGUOUS),
    "convolution, bfloat16": convolution(backward=False, dtype=torch.bfloat16),
    "convolution, depthwise": convolution(backward=False, depthwise=True),
    "convolution backward": convolution(backward=True),
    "convolution backward, contiguous": convolution(backward=True, layout=CONTIGUOUS),
    "convolution backward, float16": convolution(backward=True, dtype=torch.float16),
    "convolution backward, depthwise": convolution(backward=True, depthwise=True),
    "training step": training_step,
    "pooling": pooling(backward=False),
    "pooling, contiguous": pooling(backward=False, layout=CONTIGUOUS),
    "pooling backward": pooling(backward=True),
    "pooling backward, contiguous": pooling(backward=True, layout=CONTIGUOUS),
    "pooling backward, bfloat16": pooling(backward=True, dtype=torch.bfloat16),
}


class Memory:
    """Which of the kernels' requests for memory fail."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        self.library.fail_calls.argtypes = [ctypes.c_size_t] * 2 + [ctypes.c_long] * 2
        self.library.count_calls.restype = self.library.count_failures.restype = ctypes.c_long
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "torchdcn/_C" in line]
        bounds = [int(bound, 16) for line in lines for bound in line[0].split("-")]
        self.code = min(bounds), max(bounds)

    def fail(self, first: int, last: int) -> None:
        """Has the requests from `first` to `last` fail; they count from here on, from 1."""
        self.library.fail_calls(*self.code, first, last)

    def requests(self) -> int:
        return int(self.library.count_calls())

    def failures(self) -> int:
        return int(self.library.count_failures())


def in_a_process(task: Callable[[], Any]) -> tuple[str, Any]:
    """What a task gives in a process of its own: "" and its result, or how the process ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(task(), pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    received, deadline, in_time = b"", time.monotonic() + TIMEOUT, True
    while in_time:
        in_time = bool(select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0])
        chunk = os.read(reader, 2**20) if in_time else b""
        received += chunk
        if not chunk:
            break
    os.close(reader)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not in_time:
        return f"did not end within {TIMEOUT:.0f} s", None
    return (f"ended with exit code {code}", None) if code else ("", pickle.loads(received))  # noqa: S301  # our own words


def contents(tensors: list[Tensor]) -> list[Any]:
    return [(t.shape, t.stride(), t.contiguous().view(torch.uint8).numpy().tobytes()) for t in tensors]


@dataclass(frozen=True)
class Trial:
    """One of the calls, on so many threads."""

    memory: Memory
    call: Call
    threads: int

    def without_failure(self) -> Any:
        """How often the call with many channels asks for memory, and the values of that with many and with few."""
        torch.set_num_threads(self.threads)
        self.memory.fail(0, 0)
        values = contents(self.call(MANY))
        return self.memory.requests(), {MANY: values, FEW: contents(self.call(FEW))}

    def with_failure(self, first: int, last: int, warm: bool, expected: dict[int, Any]) -> Any:
        """Whether the call with many channels found no memory, and what is wrong with it or with the calls after it.

        Where it is `warm`, threads have memory already, from a call with few channels.
        """
        torch.set_num_threads(self.threads)
        if warm:
            self.call(FEW)
        self.memory.fail(first, last)
        raised: Exception | None = None
        try:
            self.call(MANY)
        except Exception as error:
            raised = error
        failed = self.memory.failures() > 0
        self.memory.fail(0, 0)
        wrong = [] if failed == (raised is not None) else [f"{self.memory.failures()} failures, raised {raised!r}"]
        if raised is not None and not (type(raised) is MemoryError and "out of memory" in str(raised)):
            wrong.append(f"raised {raised!r}")
        wrong += [
            f"other values with {channels} channels in the next call"
            for channels in (FEW, MANY)
            if contents(self.call(channels)) != expected[channels]
        ]
        return failed, "; ".join(wrong)


def fail_each(trial: Trial) -> dict[str, Any]:
    """Has each of a call's requests fail: alone, and again with all after it where threads have some memory already."""
    ended, found = in_a_process(trial.without_failure)
    if ended:
        return {"requests": 0, "failures": 0, "faults": [f"without a failure: {ended}"]}
    requests, expected = found
    failures, faults = 0, []
    for first in range(1, requests + 1):
        for last, warm in ((first, False), (EVER, True)):
            ended, found = in_a_process(lambda f=first, la=last, w=warm: trial.with_failure(f, la, w, expected))
            failed, fault = (True, ended) if ended else found
            failures += failed
            if fault:
                faults.append(f"request {first} of {requests}{', after a smaller call' if warm else ''}: {fault}")
    return {"requests": requests, "failures": failures, "faults": faults}


def main() -> None:
    """Prints what was found."""
    library, threads, *names = sys.argv[1:]
    instruction_set()  # loads the kernels
    memory = Memory(library)
    print(json.dumps({name: fail_each(Trial(memory, CALLS[name], int(threads))) for name in names}))  # noqa: T201


if __name__ == "__main__":
    main()
