"""The program's threads sleep while they wait, so that two runs on one machine don't slow each other."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = f"import os, sys; print([os.environ.get(name) for name in {VARIABLES}], 'torch' in sys.modules)"
# Takes the place of a verb, so that its environment is seen as the verb would see it.
VERB = f"""
import importlib, sys
sys.argv = ["torchdcn", "models"]
app = importlib.import_module("torchdcn.cli.app")
app._run = lambda arguments, verbose: exec({SHOW!r}, {{}}) or 0
app.main()
"""


def environment(**more: str) -> dict[str, str]:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    return {name: value for name, value in os.environ.items() if name not in names} | more


def printed(code: str, **more: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(**more), capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_program_limits_spinning_before_torch_is_loaded() -> None:
    assert printed(VERB) == "[None, '1000'] False"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"OMP_WAIT_POLICY": "active"}, "['active', None] False"),
        ({"GOMP_SPINCOUNT": "0"}, "[None, '0'] False"),
        ({"KMP_BLOCKTIME": "1"}, "[None, None] False"),
    ],
)
def test_a_users_own_setting_wins(given: dict[str, str], seen: str) -> None:
    assert printed(VERB, **given) == seen


def test_importing_the_package_sets_nothing() -> None:
    assert printed(f"import torchdcn; {SHOW}") == "[None, None] True"


def test_calling_the_command_from_python_sets_nothing() -> None:
    code = f"from torchdcn.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass\n{SHOW}"
    assert printed(code).splitlines()[-1].startswith("[None, None]")


def test_worker_processes_inherit_it(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(SHOW)
    child = VERB.replace(repr(SHOW), repr(f"import subprocess, sys; subprocess.run([sys.executable, {str(script)!r}])"))
    assert printed(child) == "[None, '1000'] False"
