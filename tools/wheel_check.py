"""Checks the wheel as users get it: ``make wheel-check``.

Builds it with the torch that is installed here, checks its tag and contents, and runs the operators' tests against
it, not against the checkout: under the oldest torch that is supported, in a virtual environment of its own, and under
the one installed here. The first run downloads 3 GB, which pip keeps; the environment takes 7 GB of ``build``.
"""
# ruff: noqa: S603, T201  # starts pip and pytest, and prints

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "wheel-check"
OLDEST = {"torch": "2.10.0", "torchvision": "0.25.0"}
TEST_NEEDS = ["pytest", "hypothesis", "numpy<2.4"]  # under NumPy 2.4, the interpreter of its Triton 3.6 fails
TESTS = ["tests/ops", "tests/nn", "tests/test_extension.py"]
WHERE = "import torch, torchdcn; print(torch.__version__, torchdcn.__file__)"


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command in the project's folder; the check ends where one fails."""
    print("$", *command, flush=True)
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
    if result.returncode:
        sys.exit(f"wheel-check: failed with exit code {result.returncode}: {' '.join(map(str, command))}")


def build() -> Path:
    """The wheel, by way of the source distribution: what that lacks, users who build it themselves would lack."""
    dist, leftover = PLACE / "dist", ROOT / "src" / "torchdcn.egg-info"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    shutil.rmtree(leftover, ignore_errors=True)  # else files that are gone would be listed still
    run(sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(dist)!r})")
    shutil.rmtree(leftover)
    (source,) = dist.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", dist, source)
    (wheel,) = dist.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """The tag promises any CPython from 3.10 on; the kernels must be there, since the build succeeds without them."""
    if not re.fullmatch(r"torchdcn-[\w.]+-cp310-abi3-linux_\w+\.whl", wheel.name):
        sys.exit(f"wheel-check: expected a wheel tagged cp310-abi3-linux_*, got {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if "torchdcn/_C.abi3.so" not in names:
        sys.exit(f"wheel-check: {wheel.name} holds no torchdcn/_C.abi3.so: the extension did not compile")
    if missing := [p for p in sources() if p not in names]:
        sys.exit(f"wheel-check: {wheel.name} lacks {', '.join(missing)}")


def sources() -> list[str]:
    """What of src/torchdcn is the package: all but what Python and the compiler put there."""
    files = (p for p in (ROOT / "src" / "torchdcn").rglob("*") if p.is_file() and p.suffix not in (".pyc", ".so"))
    return [p.relative_to(ROOT / "src").as_posix() for p in files]


def check_tests(python: Path, installed: Path, **environment: str) -> None:
    """Runs the tests with an interpreter, once it imports torchdcn from where the wheel was installed."""
    found = subprocess.run(
        [python, "-c", WHERE], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    print(found.stdout, found.stderr, sep="", end="", flush=True)
    if found.returncode or not Path(found.stdout.split()[-1]).resolve().is_relative_to(installed.resolve()):
        sys.exit(f"wheel-check: expected {python} to import torchdcn from {installed}")
    run(python, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *TESTS, **environment)


def main() -> None:
    """Builds, checks, and tests twice."""
    wheel = build()
    check_contents(wheel)

    oldest = PLACE / "oldest"
    python = oldest / "bin" / "python"
    if not python.exists():
        venv.create(oldest, with_pip=True)
    versions = [f"{name}=={version}" for name, version in OLDEST.items()]
    run(python, "-m", "pip", "install", "--quiet", *versions, *TEST_NEEDS, wheel)
    run(
        python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel
    )  # also over the same version
    check_tests(python, oldest, PYTHONPATH="")

    present = PLACE / "present"  # in front of the editable install of this environment
    shutil.rmtree(present, ignore_errors=True)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", present, wheel)
    check_tests(Path(sys.executable), present, PYTHONPATH=str(present))
    print(
        f"wheel-check: {wheel.relative_to(ROOT)} passes under torch {OLDEST['torch']} and under the one installed here"
    )


if __name__ == "__main__":
    main()
