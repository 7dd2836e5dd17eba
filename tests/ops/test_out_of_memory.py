"""Where the CPU kernels find no memory they say so, on any number of threads, and the next call is right again."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import torchdcn
from torchdcn.ops import available_backends

HERE = Path(__file__).parent
# By what they ask memory for. Backward is where tasks wait for one another; the others differ in their scratch memory.
GROUPS = {
    "convolution": ["convolution", "convolution, contiguous", "convolution, bfloat16", "convolution, depthwise"],
    "convolution_backward": [
        "convolution backward",
        "convolution backward, contiguous",
        "convolution backward, float16",
        "convolution backward, depthwise",
        "training step",
    ],
    "pooling": ["pooling", "pooling, contiguous"],
    "pooling_backward": ["pooling backward", "pooling backward, contiguous", "pooling backward, bfloat16"],
}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has LD_PRELOAD"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library stands before the allocator"),
    pytest.mark.skipif(available_backends()["cpp"] != "", reason="the C++ kernels are not built"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to compile failing_memory.cpp")
    target = tmp_path_factory.mktemp("library") / "failing_memory.so"
    command = ["g++", "-shared", "-fPIC", "-std=c++17", HERE / "failing_memory.cpp", "-o", target, "-ldl"]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("group", GROUPS)
def test_every_failed_allocation_raises_and_the_next_call_is_right(library: Path, group: str, threads: int) -> None:
    names = GROUPS[group][: None if threads == 2 else 2]
    done = subprocess.run(
        [sys.executable, HERE / "out_of_memory.py", library, str(threads), *names],
        # Threads that sleep while they wait: there are more of them than cores.
        env=os.environ | {"LD_PRELOAD": str(library), "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert list(found) == names
    for name, result in found.items():
        assert result["faults"] == [], name
        # Not every request of the first run: how often each thread asks is not the same each time.
        assert result["failures"] >= 10, name
    assert "Exception across" not in done.stderr  # torch says so where an exception meets one of its C functions


def test_a_new_thread_needs_little_memory_that_it_can_not_ask_for() -> None:
    """glibc ends the process where it finds no room for a thread's own variables: the size of the ELF file's PT_TLS."""
    (path,) = Path(torchdcn.__file__).parent.glob("_C*.so")
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, start + i * size) for i in range(count)]
    (in_memory,) = [segment[6] for segment in segments if segment[0] == 7]
    assert in_memory < 4096
