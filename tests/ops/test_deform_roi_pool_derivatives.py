"""Derivatives and transforms, each against the same one of the plain PyTorch definition; opcheck and torch.compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad

from torchdcn.ops import backend, deform_roi_pool
from torchdcn.ops.deform_roi_pool import reference

from .roi_cases import BACKENDS, BOXES, each_backend

Function = Callable[..., Tensor]
BINS, SCALE, GAMMA = [2, 3], 0.37, 0.3
each_ratio = pytest.mark.parametrize("ratio", [0, 2], ids=["adaptive", "2 samples"])


def tensors(seed: int = 0) -> list[Tensor]:
    """Input, offset, mask."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    K = BOXES.shape[0]
    return [draw(2, 3, 7, 9), draw(K, 2, *BINS), draw(K, 1, *BINS).sigmoid()]


def public(ratio: int) -> Function:
    return lambda x, offset, mask: deform_roi_pool(x, BOXES, (2, 3), offset, mask, SCALE, ratio, GAMMA)


def definition(ratio: int) -> Function:
    return lambda x, offset, mask: reference.deform_roi_pool(x, BOXES, offset, mask, BINS, SCALE, ratio, GAMMA)


def backward_operator(ratio: int) -> Function:
    def run(gradient: Tensor, input: Tensor, offset: Tensor, mask: Tensor) -> Any:
        return torch.ops.torchdcn.deform_roi_pool_backward(
            gradient, input, BOXES, offset, mask, BINS, SCALE, ratio, GAMMA, [True, True, True]
        )

    return run


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def scalar(function: Function) -> Function:
    return lambda *leaves: function(*leaves).sin().sum()


def jvp(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    return func.jvp(function, tuple(leaves), tuple(tangents))


def jvp_of_grad(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    return func.jvp(func.grad(scalar(function), (0, 1, 2)), tuple(leaves), tuple(tangents))


def dual(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    with forward_ad.dual_level():
        primal, tangent = forward_ad.unpack_dual(function(*map(forward_ad.make_dual, leaves, tangents)))
        assert tangent is not None
        return primal, tangent


def batched_gradients(function: Function, leaves: list[Tensor], _: list[Tensor]) -> Any:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    cotangents = torch.stack([output.detach().cos(), output.detach().sin()])
    return torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True)


TRANSFORMS: dict[str, Callable[[Function, list[Tensor], list[Tensor]], Any]] = {
    "jvp": jvp,
    "grad": lambda f, leaves, _: func.grad(scalar(f), (0, 1, 2))(*leaves),
    "vjp": lambda f, leaves, _: func.vjp(scalar(f), *leaves)[1](torch.ones((), dtype=torch.float64)),
    "jacrev by mask": lambda f, leaves, _: func.jacrev(f, 2)(*leaves),
    "jacfwd by offset": lambda f, leaves, _: func.jacfwd(f, 1)(*leaves),
    "jvp of grad": jvp_of_grad,
    "dual tensors": dual,
    "functionalize": lambda f, leaves, _: func.functionalize(f)(*leaves),
    "batched gradients": batched_gradients,
}


@each_ratio
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_equals_that_of_the_definition(transform: str, ratio: int) -> None:
    apply = TRANSFORMS[transform]
    found = apply(public(ratio), tensors(), tensors(1))
    assert_same(found, apply(definition(ratio), tensors(), tensors(1)))


@each_ratio
def test_vmap_runs_over_any_of_the_arguments_and_the_boxes(ratio: int) -> None:
    stacked = [torch.stack(pair) for pair in zip(tensors(), tensors(1), strict=True)]
    each = torch.stack([definition(ratio)(*(s[i] for s in stacked)) for i in range(2)])
    assert_same(func.vmap(public(ratio))(*stacked), each)
    for axis in range(3):
        axes: list[int | None] = [None] * 3
        axes[axis] = 0
        mixed = [s if i == axis else s[0] for i, s in enumerate(stacked)]
        expected = [definition(ratio)(*(s[i] if a == axis else s[0] for a, s in enumerate(stacked))) for i in range(2)]
        assert_same(func.vmap(public(ratio), tuple(axes))(*mixed), torch.stack(expected))

    input, offset, mask = tensors()
    several = torch.stack([BOXES, BOXES.roll(1, 0)], -1)

    def of_boxes(boxes: Tensor) -> Tensor:
        return deform_roi_pool(input, boxes, (2, 3), offset, mask, SCALE, ratio, GAMMA)

    assert_same(func.vmap(of_boxes, -1)(several), torch.stack([of_boxes(several[..., i]) for i in range(2)]))


@each_backend
@each_ratio
def test_gradients_are_the_derivative(ratio: int, name: str) -> None:
    """By finite differences; the second ones go through the reference."""
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    with backend(name):
        assert torch.autograd.gradcheck(public(ratio), leaves, fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(public(ratio), leaves, fast_mode=True)


def test_second_derivatives_through_the_backward_operator() -> None:
    leaves = [torch.randn(BOXES.shape[0], 3, *BINS, dtype=torch.float64), *tensors()]
    assert torch.autograd.gradcheck(backward_operator(0), [t.requires_grad_() for t in leaves], fast_mode=True)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)], ids=str)
def test_each_gradient_can_be_had_alone(wanted: tuple[int, ...]) -> None:
    expected = func.grad(scalar(definition(0)), (0, 1, 2))(*tensors())
    leaves = [t.requires_grad_(bool(w)) for t, w in zip(tensors(), wanted, strict=True)]
    scalar(public(0))(*leaves).backward()
    for leaf, gradient, is_wanted in zip(leaves, expected, wanted, strict=True):
        if is_wanted:
            assert_same(leaf.grad, gradient)
        else:
            assert leaf.grad is None


def test_boxes_get_no_gradient_in_any_mode() -> None:
    input, boxes = tensors()[0], BOXES.clone()
    for name in BACKENDS:
        with backend(name):
            leaf = boxes.clone().requires_grad_()
            deform_roi_pool(input.clone().requires_grad_(), leaf, 2).sum().backward()
            assert leaf.grad is None
    _, tangent = func.jvp(lambda b: deform_roi_pool(input, b, 2), (boxes,), (torch.ones_like(boxes),))
    assert not tangent.any()


@each_ratio
def test_opcheck(ratio: int) -> None:
    input, offset, mask = (t.requires_grad_() for t in tensors())
    forward = torch.ops.torchdcn.deform_roi_pool.default
    backward = torch.ops.torchdcn.deform_roi_pool_backward.default
    arguments = (input, BOXES, offset, mask, BINS, SCALE, ratio, GAMMA)
    torch.library.opcheck(forward, arguments)
    torch.library.opcheck(forward, (input, BOXES, None, None, *arguments[4:]))
    gradient = torch.randn(BOXES.shape[0], 3, *BINS, dtype=torch.float64)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # second derivatives: see below
    torch.library.opcheck(backward, (gradient, *arguments, [True, False, True]), test_utils=tests)


@each_backend
@each_ratio
def test_compiles_to_one_graph_with_the_same_gradients(ratio: int, name: str) -> None:
    torch.compiler.reset()
    leaves = [leaf.requires_grad_() for leaf in tensors()]
    expected = torch.autograd.grad(scalar(public(ratio))(*leaves), leaves)
    with backend(name):
        compiled = torch.compile(scalar(public(ratio)), backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(*leaves), leaves)
    assert_same(found, expected)


def test_a_transform_within_a_compiled_function_is_right_or_refused() -> None:
    torch.compiler.reset()
    input, offset, mask = tensors()

    def directional(x: Tensor, ratio: int) -> Tensor:
        tangent: Tensor = func.jvp(lambda x: public(ratio)(x, offset, mask).sin(), (x,), (x,))[1]
        return tangent

    compiled = torch.compile(directional, backend="aot_eager", fullgraph=True)
    assert_same(compiled(input, 2), directional(input, 2))
    with pytest.raises(Exception, match="sampling_ratio: 0 takes as many samples as the boxes are large"):
        compiled(input, 0)


def test_an_exported_program_serves_any_number_of_boxes() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            return deform_roi_pool(x, boxes, 3, spatial_scale=SCALE).relu()

    input = tensors()[0]
    dynamic = ({2: torch.export.Dim("height"), 3: torch.export.Dim("width")}, {0: torch.export.Dim("boxes")})
    program = torch.export.export(Model(), (input, BOXES), dynamic_shapes=dynamic)
    for x, boxes in ((input, BOXES[:3]), (input[:, :, :5, :4], BOXES)):
        assert_same(program.module()(x, boxes), Model()(x, boxes))
