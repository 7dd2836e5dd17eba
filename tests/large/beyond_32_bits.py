"""Index arithmetic beyond 2^31 elements, on every backend: `make test-large`.

Not named as a test, so that plain `pytest` leaves it out. A case runs in a process of its own, one after another, and
is skipped where too little memory is free.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchdcn.ops import available_backends

psutil = pytest.importorskip("psutil")

GB = 10**9
PLAIN = 2
# What a case takes at its peak, in GB, where it is more than that.
NEEDS: dict[str, dict[str, int]] = {
    "convolution: input, one map": {},
    "convolution: input of 16 bits, forward": {},
    "convolution: input and its gradient, a batch": {"reference": 7, "cpp": 8, "triton": 7},
    "convolution: input and its gradient, one map": {"reference": 10, "cpp": 10},
    "convolution: offset": {"reference": 3, "cpp": 3},
    "convolution: offset and its gradient": {"cpp": 8},
    "convolution: output and its gradient": {"reference": 7, "cpp": 7},
    "convolution: weight": {"cpp": 10},
    "pooling: input, one map": {},
    "pooling: input and its gradient, a batch": {"reference": 7, "cpp": 8, "triton": 7},
    "pooling: input and its gradient, one map": {"reference": 10, "cpp": 10},
    "pooling: output and its gradient": {"reference": 7, "cpp": 7},
    "pooling: offset": {"cpp": 4},
}
# These ask for 10^9 samples, or the gradients of as many: many minutes of plain PyTorch, days of an interpreter.
LONG = {
    "reference": [name for name in NEEDS if "offset" in name or name.endswith("output and its gradient")],
    "triton": [name for name in NEEDS if not name.split(": ")[1].startswith("input")]
    + [name for name in NEEDS if name.endswith("gradient, one map")],
    "cuda": (),
}


@pytest.mark.parametrize("name", NEEDS, ids=lambda name: name.replace(": ", "-").replace(" ", "-"))
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton", "cuda"])
def test_the_numbers_are_those_of_a_small_call(backend: str, name: str) -> None:
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if backend == "cpp" and (reason := available_backends()["cpp"]):
        pytest.skip(reason)
    if backend == "triton":
        pytest.importorskip("triton")
    if name in LONG.get(backend, ()):
        pytest.skip(f"10^9 samples take the {backend} backend too long here")
    needed = NEEDS[name].get(backend, PLAIN) * GB
    if backend != "cuda" and (free := psutil.virtual_memory().available) < needed:
        pytest.skip(f"needs {needed / GB:.0f} GB of free memory, there are {free / GB:.1f}")
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if backend == "triton" else {})
    script = Path(__file__).with_name("cases.py")
    done = subprocess.run(
        [sys.executable, str(script), name, backend], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:] or f"the process ended with {done.returncode}"
    took = json.loads(done.stdout.splitlines()[-1])
    print(f" {backend}, {name}: {took['seconds']} s, {took['peak'] / GB:.1f} GB", flush=True)  # noqa: T201  # the record
