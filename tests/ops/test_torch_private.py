"""Private names of torch: a missing one is named at import, and one that changes its meaning fails here.

``make wheel-check`` runs this file on the oldest torch that is supported and on the current one.
"""

import ast
import re
import runpy
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from torchdcn.ops import _torch_private as private

SOURCE = Path(private.__file__).parent.parent
X = torch.arange(3.0)


@pytest.mark.parametrize("name", private.REQUIRED)
def test_a_missing_name_is_named_at_import_with_the_version_of_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *path, last = name.split(".")
    monkeypatch.delattr(reduce(getattr, path, torch), last)
    with pytest.raises(ImportError, match=re.escape(f"torch.{name}, which torch {torch.__version__} does not have")):
        runpy.run_path(private.__file__)


def test_the_error_is_what_a_user_sees() -> None:
    code = "import torch; del torch._C._AutoDispatchBelowAutograd; import torchdcn.ops"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ImportError: torchdcn uses torch._C._AutoDispatchBelowAutograd")


# torch.ops holds operators' names, not torch's own; nn.Module's _parameters and the like are a module's to use.
PRIVATE = re.compile(r"^torch(\.(?!ops)\w+)*\._(?!_)|forward_ad\._|_BatchNorm|\._(schema|uncache_dispatch)\b")


def test_no_other_file_uses_a_private_name_of_torch() -> None:
    """In code; comments and docstrings may."""
    found = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Import))]
        names += [f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
        found += [f"{path.name}: {name}" for name in names if PRIVATE.search(name)]
    assert {line for line in found if not line.startswith("_torch_private.py")} == set()


# What each name means


def during(transform: str) -> list[bool]:
    """transforms_active() and forward_mode_active(), as asked within a transform."""
    seen: list[bool] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.extend((private.transforms_active(), private.forward_mode_active()))
        return x.sum()

    if transform == "dual":
        with forward_ad.dual_level():
            function(X)
    elif transform == "jvp":
        func.jvp(function, (X,), (X,))
    else:
        getattr(func, transform)(function)(X)
    return seen


def test_transforms_and_levels_of_forward_mode_are_seen_while_they_last() -> None:
    assert during("vmap") == during("grad") == [True, False]
    assert during("jvp") == [True, True]
    assert during("dual") == [False, True]
    assert not private.transforms_active()
    assert not private.forward_mode_active()


def test_a_tangent_is_found_on_dual_tensors_only() -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        assert private.has_tangent((None, X, dual))
        assert not private.has_tangent((None, X))
    assert not private.has_tangent((dual,))


def test_fake_tensors_and_modes_are_seen() -> None:
    assert not private.is_traced(X)
    assert not private.modes_active()
    with FakeTensorMode() as mode:
        assert private.modes_active()
        assert private.is_traced(mode.from_tensor(X))
    with TorchDispatchMode():
        assert private.modes_active()
        assert not private.is_traced(X)
    traced: list[bool] = []
    make_fx(lambda x: traced.append(private.is_traced(x)) or x.sin(), tracing_mode="fake")(X)
    assert traced == [True]


def test_autograd_and_autocast_can_be_left_out() -> None:
    x, matrix = X.clone().requires_grad_(), torch.eye(3)
    with private.below_autograd():
        assert not (x * 2).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with private.without_autocast():
            assert (matrix @ matrix).dtype == torch.float32
        with private.excluding("AutocastCPU")():
            assert (matrix @ matrix).dtype == torch.float32
    assert (x * 2).requires_grad


def test_a_transform_is_taken_off_with_all_its_examples() -> None:
    seen: list[tuple[int, ...]] = []
    func.vmap(lambda x: seen.append(tuple(private.without_transforms(x).shape)) or x)(torch.zeros(4, 3))
    assert seen == [(4, 3)]
    assert private.without_transforms(X) is X


def test_an_assert_on_a_value_raises() -> None:
    private.assert_async(torch.tensor(True), "never")
    with pytest.raises(RuntimeError, match="the message"):
        private.assert_async(torch.tensor(False), "the message")


def test_every_batch_normalisation_is_one() -> None:
    for kind in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm):
        assert isinstance(kind(3), private.BatchNorm)
    assert not isinstance(torch.nn.GroupNorm(1, 3), private.BatchNorm)


# A jvp is never silently zero: two guards, each enough by itself.

KEY = "torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode"
TANGENT = """
from torch import func
from torchdcn.ops import backend, deform_conv2d
generator = torch.Generator().manual_seed(0)
shapes = (1, 2, 5, 6), (1, 18, 5, 6), (2, 2, 3, 3)
input, offset, weight = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
def tangent(name):
    with backend(name):
        return func.jvp(lambda o: deform_conv2d(input, o, weight, padding=1), (offset,), (offset.cos(),))[1]
assert tangent("cpp").abs().sum() > 1
torch.testing.assert_close(tangent("cpp"), tangent("reference"), rtol=0, atol=0)
"""


@pytest.mark.parametrize(
    "change",
    [
        "",
        f"{KEY} = torch._C.DispatchKey.PrivateUse1",  # torch.func doesn't ask our implementation any more
        "import torchdcn.ops.dispatch as dispatch\ndispatch.has_tangent = lambda _: False",
    ],
    ids=["as it is", "without the key of torch.func", "without the tangents"],
)
def test_a_jvp_is_that_of_the_reference(change: str) -> None:
    """Either guard is enough by itself."""
    subprocess.run([sys.executable, "-c", f"import torch\n{change}\n{TANGENT}"], check=True)
