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


def test_import_is_silent_and_leaves_the_heavy_libraries_alone() -> None:
    heavy = ("torch", "torchvision", "matplotlib", "cv2", "faster_coco_eval", "tensorboard", "typer", "supervision")
    code = f"import sys, torchdcn; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert result.stderr == ""
