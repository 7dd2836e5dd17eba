"""The stand-in serves the whole process: each test takes it out again, so that the others meet torchvision's own."""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torchvision.ops import DeformConv2d
from torchvision.ops import deform_conv2d as imported_before

from torchdcn.ops import accelerate_torchvision
from torchdcn.ops import torchvision as module

from .cases import CASES, Case, assert_like, each_case

OPERATORS = ("deform_conv2d", "_deform_conv2d_backward")


@pytest.fixture
def accelerate() -> Iterator[Callable[[], None]]:
    def silently() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            accelerate_torchvision()

    yield silently
    take_out()


def take_out() -> None:
    if module._library is not None:
        module._library._destroy()
        module._library = None
        module._forget_routes()


def arguments(case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Those of the case that are tensors, and a bias."""
    bias = torch.randn(case.Co, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return [t for t in case.tensors(dtype) if t is not None] + [bias.to(dtype)]


def run(case: Case, tensors: list[Tensor]) -> Tensor:
    input, offset, *mask, weight, bias = tensors
    return imported_before(input, offset, weight, bias, case.stride, case.padding, case.dilation, *mask)


def run_backward(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """Output and all gradients against one random cotangent."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = run(case, leaves)
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


@each_case
def test_output_and_gradients_are_what_they_were(case: Case, accelerate: Callable[[], None]) -> None:
    expected = run_backward(case, arguments(case))
    accelerate()
    for actual, known in zip(run_backward(case, arguments(case)), expected, strict=True):
        assert_like(actual, known, 1e-12)


def test_a_layer_without_mask_and_bias_gives_what_it_gave(accelerate: Callable[[], None]) -> None:
    layer = DeformConv2d(6, 9, (3, 5), stride=2, padding=(1, 2), groups=3, bias=False).double()
    input, offset = torch.randn(3, 6, 13, 10).double(), torch.randn(3, 60, 7, 5).double()
    expected = layer(input, offset)
    accelerate()
    torch.testing.assert_close(layer(input, offset), expected, rtol=0, atol=1e-12)


def test_inference_mode_gives_the_same_numbers(accelerate: Callable[[], None]) -> None:
    case = CASES[0]
    expected = run(case, arguments(case))
    accelerate()
    with torch.inference_mode():
        assert_like(run(case, arguments(case)), expected, 1e-12)


@pytest.mark.parametrize("inference", [False, True])
def test_the_output_of_a_channels_last_input_is_contiguous_as_torchvisions(
    accelerate: Callable[[], None], inference: bool
) -> None:
    case = CASES[0]
    input, *others = arguments(case)
    expected = run(case, [input, *others])
    accelerate()
    with torch.inference_mode(inference):
        output = run(case, [input.contiguous(memory_format=torch.channels_last), *others])
    assert output.stride() == expected.stride()
    assert_like(output, expected, 1e-12)


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(accelerate: Callable[[], None]) -> None:
    case = Case("", N=0)
    accelerate()
    output, *_, weight, bias = run_backward(case, arguments(case))
    assert output.shape == (0, 6, 9, 11)
    assert not weight.any()
    assert not bias.any()


def test_bfloat16_which_torchvision_refuses_works_and_stops_when_taken_out(accelerate: Callable[[], None]) -> None:
    case = CASES[0]
    with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
        run(case, arguments(case, torch.bfloat16))
    exact = run(case, [t.double() for t in arguments(case, torch.bfloat16)])
    accelerate()
    output = run(case, arguments(case, torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert_like(output, exact, 8e-3)
    take_out()
    with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
        run(case, arguments(case, torch.bfloat16))


def test_autocast_leaves_equal_dtypes_as_they_are(accelerate: Callable[[], None]) -> None:
    case = CASES[0]
    accelerate()
    expected = run(case, arguments(case, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        output = run(case, arguments(case, torch.float32))
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_autocast_computes_in_the_inputs_dtype(accelerate: Callable[[], None]) -> None:
    case = CASES[0]
    input, offset, mask, weight, bias = arguments(case, torch.float32)
    accelerate()
    exact = run(case, [input, offset, mask, weight, bias])
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = run(case, [input.bfloat16(), offset, mask.bfloat16(), weight, bias])
        high = run(case, [input, offset.bfloat16(), mask.bfloat16(), weight, bias])
    assert (low.dtype, high.dtype) == (torch.bfloat16, torch.float32)
    assert_like(low, exact, 2e-2)
    torch.testing.assert_close(
        high, run(case, [input, offset.bfloat16().float(), mask.bfloat16().float(), weight, bias])
    )
    low.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


SMALL = Case("", N=2, C=4, Co=6, size=(4, 5), groups=2, deform_groups=2)


@pytest.mark.parametrize("case", [SMALL, replace(SMALL, masked=False)], ids=["masked", "unmasked"])
def test_forward_mode_and_second_derivatives_are_right(case: Case, accelerate: Callable[[], None]) -> None:
    accelerate()
    leaves = [t.requires_grad_() for t in arguments(case)]

    def function(*tensors: Tensor) -> Tensor:
        return run(case, list(tensors))

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_a_derivative_under_autocast_is_no_less_exact(accelerate: Callable[[], None]) -> None:
    tensors = arguments(SMALL, torch.float32)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    accelerate()
    expected = torch.func.jvp(lambda *t: run(SMALL, list(t)), tuple(tensors), tangents)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.func.jvp(lambda *t: run(SMALL, list(t)), tuple(tensors), tangents)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_jvp_and_vmap_of_any_argument_are_right(accelerate: Callable[[], None]) -> None:
    tensors = arguments(SMALL)
    tangents = [torch.randn_like(t) for t in tensors]

    def function(*tensors: Tensor) -> Tensor:
        return run(SMALL, list(tensors))

    def at(step: float) -> Tensor:
        return function(*(t + step * d for t, d in zip(tensors, tangents, strict=True)))

    differences = (at(1e-6) - at(-1e-6)) / 2e-6
    accelerate()
    _, tangent = torch.func.jvp(function, tuple(tensors), tuple(tangents))
    torch.testing.assert_close(tangent, differences, rtol=1e-6, atol=1e-6)
    leaves = [t.clone().requires_grad_() for t in tensors]
    one_by_one = torch.autograd.grad(function(*leaves).square().sum(), leaves)
    by_transform = torch.func.grad(lambda *t: function(*t).square().sum(), argnums=tuple(range(5)))(*tensors)
    for actual, expected in zip(by_transform, one_by_one, strict=True):
        assert_like(actual, expected, 1e-12)
    for i, tensor in enumerate(tensors):
        pair = torch.stack([tensor, 2 * tensor])
        dims = tuple(0 if j == i else None for j in range(len(tensors)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # as with torchvision's own
            batched = torch.func.vmap(function, in_dims=dims)(*tensors[:i], pair, *tensors[i + 1 :])
        torch.testing.assert_close(batched[1], function(*tensors[:i], 2 * tensor, *tensors[i + 1 :]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_opcheck_finds_nothing(accelerate: Callable[[], None], layout: torch.memory_format, masked: bool) -> None:
    input, offset, mask, weight, bias = arguments(SMALL)
    input = input.contiguous(memory_format=layout)
    numbers = (1, 1, 1, 1, 1, 1, 2, 2, masked)
    leaves = [t.requires_grad_() for t in (input, weight, offset)] + [mask.requires_grad_(masked), bias]
    accelerate()
    torch.library.opcheck(torch.ops.torchvision.deform_conv2d.default, (*leaves, *numbers))
    grad = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    plain = [t.detach() for t in leaves]
    torch.library.opcheck(torch.ops.torchvision._deform_conv2d_backward.default, (grad, *plain, *numbers))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_models_give_the_same(accelerate: Callable[[], None], when: str, layout: torch.memory_format) -> None:
    torch.compiler.reset()
    compiled = torch.compile(run_backward, backend="aot_eager", fullgraph=False)
    case = CASES[0]
    tensors = arguments(case)
    tensors[0] = tensors[0].contiguous(memory_format=layout)
    expected = run_backward(case, tensors)
    if when == "before":
        compiled(case, tensors)
    accelerate()
    for actual, known in zip(compiled(case, tensors), expected, strict=True):
        assert_like(actual, known, 1e-12)


def test_compiled_graphs_keep_torchvisions_operators(accelerate: Callable[[], None]) -> None:
    """They are cached on disk, also for processes that don't know torchdcn."""
    found: list[str] = []

    def note(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        found.extend(str(node.target) for node in graph.graph.nodes if "deform" in str(node.target))
        return make_boxed_func(graph)

    accelerate()
    torch.compiler.reset()
    torch.compile(run, backend=aot_autograd(fw_compiler=note, bw_compiler=note))(
        CASES[0], [t.requires_grad_() for t in arguments(CASES[0])]
    ).sum().backward()
    assert found == ["torchvision.deform_conv2d.default", "torchvision._deform_conv2d_backward.default"]


def test_a_compiled_jvp_is_right_after_a_compilation_before(accelerate: Callable[[], None]) -> None:
    tensors = arguments(SMALL)
    tangents = tuple(torch.randn_like(t) for t in tensors)

    def function(*tensors: Tensor) -> Tensor:
        return run(SMALL, list(tensors))

    def tangent(*tensors: Tensor) -> Tensor:
        return torch.func.jvp(function, tensors, tangents)[1]

    torch.compiler.reset()
    torch.compile(function, backend="aot_eager")(*tensors)
    accelerate()
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(*tensors), tangent(*tensors))


def test_a_graph_recorded_before_is_differentiated_after(accelerate: Callable[[], None]) -> None:
    for case in (SMALL, replace(SMALL, masked=False)):
        expected = run_backward(case, arguments(case))
        leaves = [t.requires_grad_() for t in arguments(case)]
        output = run(case, leaves)
        cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
        accelerate()
        for actual, known in zip(torch.autograd.grad(output, leaves, cotangent), expected[1:], strict=True):
            assert_like(actual, known, 1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_served_too(accelerate: Callable[[], None]) -> None:
    layer = torch.jit.script(DeformConv2d(4, 6, 3, padding=1).bfloat16())
    accelerate()
    output = layer(torch.ones(1, 4, 5, 5).bfloat16(), torch.zeros(1, 18, 5, 5).bfloat16())
    assert output.shape == (1, 6, 5, 5)


def test_a_second_call_does_nothing(accelerate: Callable[[], None]) -> None:
    accelerate()
    first = module._library
    accelerate()
    assert module._library is first


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_other_device_is_touched(accelerate: Callable[[], None], operator: str) -> None:
    def table() -> dict[str, str]:
        lines = torch._C._dispatch_dump_table(f"torchvision::{operator}").splitlines()
        return dict(line.split(": ", 1) for line in lines)

    before = table()
    accelerate()
    changed = {key for key, kernel in table().items() if before[key] != kernel}
    assert {"CPU", "AutogradCPU"} <= changed <= {"CPU", "AutogradCPU", "AutocastCPU"}
    assert "CUDA" in before


def test_what_does_not_fit_is_named(accelerate: Callable[[], None]) -> None:
    input, offset, mask, weight, bias = arguments(SMALL)
    accelerate()
    with pytest.raises(ValueError, match=r"mask: expected shape \[2, 18, 4, 5\], got \[2, 9, 4, 5\]"):
        run(SMALL, [input, offset, mask[:, :9], weight, bias])
    with pytest.raises(ValueError, match=r"bias: expected shape \[6\], got \[1\]"):
        run(SMALL, [input, offset, mask, weight, bias[:1]])
    with pytest.raises(TypeError, match=r"offset: expected torch\.float64 beside"):
        run(SMALL, [input, offset.float(), mask, weight, bias])


def test_without_kernels_it_says_why(accelerate: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_backends", lambda: {"cpp": "not built"})
    with pytest.raises(RuntimeError, match=r"accelerate_torchvision: no C\+\+ kernels here: not built"):
        accelerate()


def test_without_torchvision_it_says_which_to_install(
    accelerate: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="install the one that matches torch"):
        accelerate()


def test_a_torchvision_without_operators_is_named(
    accelerate: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops, "torchvision", object())
    with pytest.raises(RuntimeError, match="has no compiled operators here; install the one"):
        accelerate()


def test_the_example_in_the_docs_runs_and_finds_rounding_only() -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "accelerate_torchvision.py"
    result = subprocess.run(
        [sys.executable, str(example), "--rounds", "1", "--size", "16", "20"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "features 64 x 16 x 20" in result.stdout
    differences = [float(number) for number in re.findall(r"largest difference .*: (\S+) of", result.stdout)]
    assert len(differences) == 2
    assert max(differences) < 1e-5
