import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("tests", ["interpreted_triton", "interpreted_triton_roi_pool", "interpreted_triton_chunks"])
def test_in_the_interpreter_kernels_give_what_the_reference_gives(tests: str) -> None:
    """The tests of a file, in a process of their own: Triton reads the variable when it is imported."""
    file = Path(__file__).parent / f"{tests}.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
