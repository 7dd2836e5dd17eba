"""How long the threads of torch's OpenMP spin, as OMP_DISPLAY_ENV has GNU's print it when it is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchdcn.cli.threads import SPINS

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COMMAND = ("-m", "torchdcn", "models")  # one that imports torch
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def spin_counts(*command: str, **more: str) -> list[str]:
    """Of every process of a Python command that loads OpenMP."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, *command],
        env=kept | {"OMP_DISPLAY_ENV": "verbose"} | more,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)


@pytest.fixture(scope="module")
def own() -> str:
    """What it does when nobody sets anything, and so for who imports torch and this package."""
    found = spin_counts("-c", "import torchdcn, torchdcn.cli, torch")
    if not found:
        pytest.skip("torch's OpenMP is not GNU's")
    return found[0]


def test_the_package_leaves_the_runtime_as_it_is(own: str) -> None:
    assert spin_counts("-c", "import torch") == [own]
    assert int(own) > int(SPINS)


@pytest.mark.usefixtures("own")
def test_the_runtime_of_a_command_spins_shortly() -> None:
    assert spin_counts(*COMMAND) == [SPINS]
    script = Path(sys.executable).with_name("torchdcn")
    if script.exists():
        assert spin_counts(str(script), "models") == [SPINS]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OMP_WAIT_POLICY", "passive", "0"),
        ("OMP_WAIT_POLICY", "active", "30000000000"),
        ("GOMP_SPINCOUNT", "77", "77"),
        ("KMP_BLOCKTIME", "3", "own"),  # which is for Intel's and LLVM's runtimes
    ],
)
def test_the_runtime_does_as_the_user_says(own: str, name: str, value: str, expected: str) -> None:
    assert spin_counts(*COMMAND, **{name: value}) == [own if expected == "own" else expected]


def test_the_processes_of_torchrun_spin_shortly(own: str) -> None:
    launcher, *workers = spin_counts(*TORCHRUN, *COMMAND)
    assert launcher == own  # it is not ours, and has no work
    assert workers == [SPINS, SPINS]


def test_torchrun_passes_the_users_setting_on(own: str) -> None:
    assert spin_counts(*TORCHRUN, *COMMAND, GOMP_SPINCOUNT="77") == ["77"] * 3, own
