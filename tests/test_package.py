import re
import subprocess
import sys
from pathlib import Path

import pytest

import torchdcn


def test_every_name_of_the_package_is_there() -> None:
    for name in torchdcn.__all__:
        assert getattr(torchdcn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'detektor'"):
        _ = torchdcn.detektor  # type: ignore[attr-defined]  # that is the point


@pytest.mark.parametrize("first", ["torch, torchdcn", "torchdcn, torch", "torchdcn.nn, torch"])
def test_the_operators_are_registered_in_whichever_order_it_is_imported(first: str) -> None:
    code = f"import {first}; print(torch.ops.torchdcn.deform_conv2d, torchdcn.nn.DeformConv2d.__name__)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "torchdcn.deform_conv2d DeformConv2d\n"


@pytest.mark.parametrize("program", [["-m", "torchdcn"], ["-u", "-m", "torchdcn"]], ids=" ".join)
def test_the_program_does_not_wait_for_torch(program: list[str]) -> None:
    watched = [sys.executable, "-X", "importtime", *program, "--version"]
    result = subprocess.run(watched, capture_output=True, text=True, check=True)
    assert re.search(r"\| +torchdcn\.cli$", result.stderr, re.MULTILINE)
    assert not re.search(r"\| +torch$", result.stderr, re.MULTILINE)


def test_a_package_that_is_started_as_a_program_has_the_operators_too(tmp_path: Path) -> None:
    package = tmp_path / "torchdcn_user"
    package.mkdir()
    (package / "__init__.py").write_text("import torchdcn, torch\nprint(torch.ops.torchdcn.deform_conv2d)\n")
    (package / "__main__.py").touch()
    command = [sys.executable, "-m", "torchdcn_user"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout == "torchdcn.deform_conv2d\n"


def test_no_hook_is_left_in_the_process() -> None:
    code = """
import sys, torch, torch.nn.modules.module as module
finders = list(sys.meta_path)
hooks = {name: dict(value) for name, value in vars(module).items() if "_global" in name and hasattr(value, "items")}
import torchdcn, torchdcn.nn, torchdcn.models
print(sys.meta_path == finders, hooks == {name: dict(vars(module)[name]) for name in hooks}, len(hooks) > 5)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True True True\n"


def test_import_is_silent_and_leaves_the_heavy_libraries_alone() -> None:
    heavy = ("torchvision", "matplotlib", "cv2", "faster_coco_eval", "tensorboard", "typer", "supervision", "requests")
    code = f"import sys, torchdcn; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == ""
