import subprocess
import sys

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


THREADS = """
import threading, time, torchdcn
def later():
    time.sleep(0.3)
    import torchdcn.ops
thread = threading.Thread(target=later)
thread.start()
import torch
thread.join()
import torchdcn.ops
"""


@pytest.mark.parametrize(
    "code",
    ["import importlib.util, torchdcn\nimportlib.util.find_spec('torch')\nimport torch", THREADS],
    ids=["somebody looks for torch", "another thread imports the operators"],
)
def test_the_operators_are_registered_whatever_else_is_imported(code: str) -> None:
    code += "\nprint(torch.ops.torchdcn.deform_conv2d)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("torchdcn.deform_conv2d\n", "")


def test_torch_is_imported_even_if_the_operators_cannot_be() -> None:
    code = "import sys, torchdcn; sys.modules['torchdcn.ops.reference'] = None; import torch; print(torch.zeros(1))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "tensor([0.])\n"
    assert "torch is imported, but not what torchdcn adds to it: import of torchdcn.ops.reference" in result.stderr


def test_import_is_silent_and_leaves_the_heavy_libraries_alone() -> None:
    heavy = ("torch", "torchvision", "matplotlib", "cv2", "faster_coco_eval", "tensorboard", "typer", "supervision")
    code = f"import sys, torchdcn; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == ""
