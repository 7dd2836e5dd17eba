"""Memory stays level, however many pictures come."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from torchdcn.models.weights import save_weights
from torchdcn.plotting import encode_png

from .running import ask, make_network, noise, upload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOW = os.environ.get("TORCHDCN_SLOW_TESTS") == "1"
MODEL = "mask_rcnn_r18_fpn_mdconv_c3-c5"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    weights = tmp_path / "small.safetensors"
    save_weights(make_network(MODEL).model, weights)
    command = [sys.executable, "-m", "torchdcn", "serve", "--model", MODEL, "--weights", str(weights), "--port", "0"]
    # glibc keeps an arena a thread, which fills for a while and would look like a leak.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    found = re.search(r":(\d+) ", process.stdout.readline())
    assert found
    yield SimpleNamespace(port=int(found[1]), memory=lambda: psutil.Process(process.pid).memory_info().rss / 2**20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    "uploads",
    [60, pytest.param(500, marks=pytest.mark.skipif(not SLOW, reason="a minute: TORCHDCN_SLOW_TESTS=1"))],
)
def test_memory_stays_level_over_many_uploads(server: Any, uploads: int) -> None:
    """Pictures of 1.5 MB each that are also asked about: to keep them all would show, 60 of them as 90 MB and more."""
    files = [encode_png(noise(640, 800, seed)) for seed in range(3)]
    for number in range(12):
        ask(server, upload(server, files[number % 3]), "detections" if number % 2 else "layers")
    before = server.memory()
    for number in range(uploads):
        ask(server, upload(server, files[number % 3]), "detections" if number % 2 else "layers")
    assert server.memory() - before < 30
