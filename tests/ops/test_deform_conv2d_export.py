"""torch.compile, torch.export, AOTInductor, opcheck: the operator stays one node, whatever the size."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from torchdcn.nn import DeformConv2dPack, ModulatedDeformConv2dPack
from torchdcn.ops import backend, deform_conv2d

from .cases import Case, assert_like, each_backend, gradients, ours

SIZES = [(2, 4, 9, 11), (3, 4, 12, 7), (7, 4, 30, 21), (1, 4, 5, 6)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    def __init__(self, stride: int = 1, modulated: bool = True) -> None:
        super().__init__()
        pack = ModulatedDeformConv2dPack if modulated else DeformConv2dPack
        self.pack = pack(4, 6, 3, stride=stride, padding=1, deform_groups=2)
        self.last = nn.Conv2d(6, 2, 1)
        nn.init.normal_(self.pack.conv_offset.weight, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.pack(x).relu())
        return y


def parameter_gradients(function: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_one_dynamic_graph_serves_all_sizes_forward_and_backward(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Model(stride=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for i, size in enumerate(SIZES[:3]):
        x = torch.rand(size).contiguous(memory_format=memory_format)
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            found = parameter_gradients(compiled, model, x)
        for a, b in zip(found, parameter_gradients(model, model, x), strict=True):
            assert_like(a, b, 1e-5)


def test_inductor_gives_the_same_numbers_and_calls_the_kernels() -> None:
    case = Case("", N=1, C=4, Co=2, size=(4, 5))
    tensors = case.tensors(torch.float32)
    output, expected, cotangent = gradients(ours, case, tensors)
    compiled = torch.compile(ours, fullgraph=True, backend="inductor")
    compiled_output, found, _ = gradients(compiled, case, tensors, cotangent)
    assert torch.equal(compiled_output, output)  # the very same kernel
    for argument in expected:
        assert torch.equal(found[argument], expected[argument])


@each_backend
def test_what_was_traced_under_a_forced_backend_is_right(name: str) -> None:
    case = Case("", N=2, C=4, Co=2, size=(4, 5))
    tensors = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in case.tensors()]
    output, expected, cotangent = gradients(ours, case, tensors)
    with backend(name):
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        compiled_output, found, _ = gradients(compiled, case, tensors, cotangent)
    assert compiled_output.stride() == output.stride()
    assert_like(compiled_output, output, 1e-12)
    for argument in expected:
        assert_like(found[argument], expected[argument], 1e-12)


def test_compiles_under_autocast() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.rand(2, 4, 9, 11)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = model(x)
        return y

    assert torch.compile(run, backend="aot_eager", fullgraph=True)(x).dtype == torch.bfloat16
    assert_like(torch.compile(run, backend="aot_eager", fullgraph=True)(x).float(), run(x).float(), 2e-2)


def test_a_transform_within_a_compiled_function_is_right() -> None:
    input, offset, mask, weight = Case("", N=1, C=4, Co=2, size=(4, 5)).tensors()
    assert input is not None

    def directional(x: Tensor) -> tuple[Tensor, Tensor]:
        def f(x: Tensor) -> Tensor:
            return deform_conv2d(x, offset, weight, padding=1, mask=mask).sin()  # type: ignore[arg-type]  # not None

        return torch.func.jvp(f, (x,), (x,))[1], torch.func.vmap(f)(x[None])[0]

    expected = directional(input)
    found = torch.compile(directional, backend="aot_eager", fullgraph=True)(input)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("modulated", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_an_exported_program_is_dynamic_and_holds_the_operator(strict: bool, modulated: bool) -> None:
    torch.manual_seed(0)
    model = Model(modulated=modulated).eval()
    dimensions = ({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},)  # no range is asked for: any size
    program = torch.export.export(model, (torch.rand(SIZES[0]),), dynamic_shapes=dimensions, strict=strict)
    for stage in (program, program.run_decompositions()):
        operators = [node.target for node in stage.graph.nodes if node.op == "call_function"]
        assert operators.count(torch.ops.torchdcn.deform_conv2d.default) == 1
        for size in SIZES:
            x = torch.rand(size)
            torch.testing.assert_close(stage.module()(x), model(x))


def test_a_saved_program_needs_torchdcn_where_it_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Model(stride=2).eval(), torch.rand(2, 4, 9, 11)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))
    without = python("import torch; torch.export.load('model.pt2')", tmp_path)
    assert without.returncode != 0
    assert "torchdcn.deform_conv2d" in without.stderr


@pytest.mark.skipif(
    not os.environ.get("TORCHDCN_SLOW_TESTS"), reason="compiles C++ for a minute: TORCHDCN_SLOW_TESTS=1"
)
def test_an_aotinductor_package_runs_where_torchdcn_is_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model(stride=2).eval()
    dimensions = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.rand(SIZES[0]),), dynamic_shapes=dimensions)
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    examples = [(x := torch.rand(size), model(x).detach()) for size in SIZES]
    torch.save(examples, tmp_path / "examples.pt")
    check = """
run = torch._inductor.aoti_load_package("model.pt2")
for x, y in torch.load("examples.pt"):
    torch.testing.assert_close(run(x), y)
"""
    imported = python("import torch, torch._inductor, torchdcn.ops" + check, tmp_path)
    assert imported.returncode == 0, imported.stderr
    without = python("import torch, torch._inductor" + check, tmp_path)
    assert "Could not find schema for torchdcn::deform_conv2d" in without.stderr


def python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


OPCASES = {
    "mask, channels last": (Case("", C=4, size=(4, 5), stride=(2, 1), groups=2, deform_groups=2), torch.channels_last),
    "no mask": (Case("", C=4, Co=2, size=(4, 5), masked=False), torch.contiguous_format),
    "empty batch": (Case("", N=0, C=4, Co=2, size=(4, 5)), torch.contiguous_format),
}


@pytest.mark.parametrize(("case", "memory_format"), OPCASES.values(), ids=OPCASES)
def test_opcheck_of_every_registered_operator(case: Case, memory_format: torch.memory_format) -> None:
    """Schema, autograd registration, fake tensors, and AOT autograd with symbolic sizes."""
    plain = [None if t is None else t.clone(memory_format=memory_format) for t in case.tensors(torch.float32)]
    leaves = [None if t is None else t.clone().requires_grad_() for t in plain]
    output = ours(case, plain).requires_grad_()
    wanted, numbers, ops = [True, True, case.masked, True], case.numbers(), torch.ops.torchdcn
    torch.library.opcheck(ops.deform_conv2d.default, (*leaves, *numbers))
    torch.library.opcheck(ops.deform_conv2d_backward.default, (output, *leaves, *numbers, wanted))
    # The kernels, as Python calls them: outputs are arguments, so there is nothing to differentiate.
    plain[3] = case.tensors(torch.float32)[3]
    output = output.detach()
    written = [None if t is None else torch.zeros_like(t) for t in plain]
    torch.library.opcheck(ops._deform_conv2d_cpp.default, (*plain, *numbers, torch.zeros_like(output)))
    torch.library.opcheck(ops._deform_conv2d_backward_cpp.default, (output, *plain, *numbers, *written))


def test_no_operator_was_left_out_of_opcheck() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("torchdcn::")}
    convolution = {name for name in registered if "deform_conv2d" in name}
    assert convolution == {
        f"torchdcn::{name}"
        for name in (
            "deform_conv2d",
            "deform_conv2d_backward",
            "_deform_conv2d_cpp",
            "_deform_conv2d_backward_cpp",
        )
    }
