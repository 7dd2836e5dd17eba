"""Private names of torchvision: one that goes gives one clear line, and none is used around the list."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torchvision

from torchdcn.models import _torchvision_private as private
from torchdcn.models import rcnn, roi_heads, rpn

SOURCE = Path(private.__file__).parents[1]
OURS = (
    rcnn.Transform, roi_heads.RoIHeads, rpn.AnchorGenerator, rpn.BoxCoder, rpn.Matcher, rpn.RegionProposalNetwork,
)  # fmt: skip


@pytest.mark.parametrize("name", private.NAMES, ids=lambda name: name.path)
def test_a_name_that_torchvision_lacks_is_named_with_its_version(
    name: private.PrivateName, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = import_module(name.module)
    *classes, last = name.path.split(".")
    if classes and classes[0].endswith("()"):
        monkeypatch.setitem(private.EXAMPLES, classes[0].removesuffix("()"), lambda _: object())
    else:
        for part in classes:
            owner = getattr(owner, part)
        monkeypatch.delattr(owner, last)
    with pytest.raises(ImportError, match=rf"torchvision {torchvision.__version__.split('+')[0]}.* has no ") as caught:
        private.find(name)
    assert f"{name.module}.{name.path}, which detectors need ({name.use})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_import_of_the_models_says_what_is_missing() -> None:
    code = (
        "from torchvision.models.detection import rpn\n"
        "del rpn.RegionProposalNetwork.compute_loss\n"
        "try: import torchdcn.models\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no torchvision.models.detection.rpn.RegionProposalNetwork.compute_loss" in done.stdout


def test_an_attribute_that_nothing_reads_any_more_is_not_set() -> None:
    coder = rpn.BoxCoder((1.0, 1.0, 1.0, 1.0))
    private.replace_attribute(coder, "weights", (2.0, 2.0, 2.0, 2.0))
    assert coder.weights == (2.0, 2.0, 2.0, 2.0)
    with pytest.raises(AttributeError, match=r"BoxCoder of torchvision .* has no weigths to replace"):
        private.replace_attribute(coder, "weigths", 1)


@pytest.mark.parametrize("ours", OURS, ids=lambda cls: cls.__name__)
def test_methods_that_torchvision_calls_are_in_the_list_and_take_its_arguments(ours: type) -> None:
    theirs = ours.__mro__[1]
    assert theirs.__module__.startswith("torchvision.")
    listed = {name.path for name in private.NAMES}
    for method, function in vars(ours).items():
        if method.startswith("__") or method == "forward" or not hasattr(theirs, method):
            continue
        expected, own = (list(inspect.signature(f).parameters) for f in (getattr(theirs, method), function))
        assert own[: len(expected)] == expected, method
        # postprocess_detections is called by our own forward only.
        assert f"{theirs.__name__}.{method}" in listed | {"RoIHeads.postprocess_detections"}


def test_private_modules_of_torchvision_are_imported_in_one_place() -> None:
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found += [(path.name, name) for name in names if name.startswith("torchvision.") and "._" in name]
    assert found == []
