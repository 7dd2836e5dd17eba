"""Derivatives and transforms, each against the same one of the plain PyTorch definition, which torch differentiates."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from torchdcn.ops import backend, deform_conv2d
from torchdcn.ops.deform_conv2d import reference

Function = Callable[..., Tensor]
NUMBERS = ([1, 1], [1, 0], [1, 2], 2, 2)  # stride, padding, dilation, groups, deform_groups
WANTED = (True, True, True, True)


def tensors(N: int, masked: bool, seed: int) -> list[Tensor]:
    """Input, offset, weight, and a mask or none: positions lie away from kinks, for no draw hits one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    found = [draw(N, 4, 3, 5), 0.7 * draw(N, 16, 4, 3), draw(6, 2, 2, 2)]
    return [*found, draw(N, 8, 4, 3).sigmoid()] if masked else found


def public(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    return deform_conv2d(input, offset, weight, None, *NUMBERS[:3], mask)


def operator(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    output: Tensor = torch.ops.torchdcn.deform_conv2d(input, offset, mask, weight, *NUMBERS)
    return output


def definition(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    return reference.deform_conv2d(input, offset, mask, weight, *NUMBERS)


def cotangent(input: Tensor) -> Tensor:
    N = input.shape[0]
    return torch.arange(N * 6 * 4 * 3, dtype=torch.float64).cos().reshape(N, 6, 4, 3)


def backward_operator(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    gradients = torch.ops.torchdcn.deform_conv2d_backward(
        cotangent(input), input, offset, mask, weight, *NUMBERS, (True, True, mask is not None, True)
    )
    return sum((g.square().sum() for g in gradients), torch.zeros((), dtype=torch.float64))


def backward_definition(*leaves: Tensor) -> Tensor:
    gradients = func.vjp(definition, *leaves)[1](cotangent(leaves[0]))
    return sum((g.square().sum() for g in gradients), torch.zeros((), dtype=torch.float64))


LEVELS = {
    "public": (public, definition),
    "operator": (operator, definition),
    "backward": (backward_operator, backward_definition),
}
each_level = pytest.mark.parametrize(("actual", "expected"), LEVELS.values(), ids=LEVELS)
each_mask = pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
each_batch = pytest.mark.parametrize("N", [2, 0], ids=["batch", "empty batch"])


def assert_equal(actual: Any, expected: Any) -> None:
    actual_leaves, expected_leaves = tree_leaves(actual), tree_leaves(expected)
    assert len(actual_leaves) == len(expected_leaves)
    for a, e in zip(actual_leaves, expected_leaves, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def scalar(function: Function) -> Function:
    return lambda *leaves: function(*leaves).sin().sum()


def jvp(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    return func.jvp(function, tuple(leaves), tuple(tangents))


def jvp_of_grad(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    return func.jvp(func.grad(scalar(function), tuple(range(len(leaves)))), tuple(leaves), tuple(tangents))


def grad_of_jvp(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    def directional(*varied: Tensor) -> Tensor:
        return func.jvp(scalar(function), varied, tuple(tangents))[1]

    return func.grad(directional, tuple(range(len(leaves))))(*leaves)


def third_derivative(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    def along(times: int, offset: Tensor) -> Tensor:
        if times == 0:
            return scalar(function)(leaves[0], offset, *leaves[2:])
        return (func.grad(lambda o: along(times - 1, o))(offset) * tangents[1]).sum()

    return along(3, leaves[1])


def dual(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    with forward_ad.dual_level():
        output = function(*map(forward_ad.make_dual, leaves, tangents))
        primal, tangent = forward_ad.unpack_dual(output)
        assert tangent is not None
        return primal, tangent


def dual_through_autograd(function: Function, leaves: list[Tensor], tangents: list[Tensor]) -> Any:
    with forward_ad.dual_level():
        varied = [
            forward_ad.make_dual(leaf.clone().requires_grad_(), t) for leaf, t in zip(leaves, tangents, strict=True)
        ]
        gradients = torch.autograd.grad(scalar(function)(*varied), varied)
        return [tuple(forward_ad.unpack_dual(g)) for g in gradients]


def batched_gradients(function: Function, leaves: list[Tensor], _: list[Tensor]) -> Any:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    output = function(*leaves)
    cotangents = torch.stack([output.detach().cos(), output.detach().sin()])
    return torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True)


TRANSFORMS: dict[str, Callable[[Function, list[Tensor], list[Tensor]], Any]] = {
    "value": lambda f, leaves, _: f(*leaves),
    "jvp": jvp,
    "grad": lambda f, leaves, _: func.grad(scalar(f), tuple(range(len(leaves))))(*leaves),
    "vjp": lambda f, leaves, _: func.vjp(scalar(f), *leaves)[1](torch.ones((), dtype=torch.float64)),
    "jacrev": lambda f, leaves, _: func.jacrev(f, 1)(*leaves),
    "jacfwd": lambda f, leaves, _: func.jacfwd(f, 2)(*leaves),
    "hessian by offset": lambda f, leaves, _: func.hessian(scalar(f), 1)(*leaves),
    "hessian by weight": lambda f, leaves, _: func.hessian(scalar(f), 2)(*leaves),
    "jvp of grad": jvp_of_grad,
    "grad of jvp": grad_of_jvp,
    "third derivative": third_derivative,
    "dual tensors": dual,
    "dual tensors through autograd": dual_through_autograd,
    "functionalize": lambda f, leaves, _: func.functionalize(f)(*leaves),
    "batched gradients": batched_gradients,
}


@each_level
@each_mask
@each_batch
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_equals_that_of_the_definition(
    transform: str, N: int, masked: bool, actual: Function, expected: Function
) -> None:
    if N == 0 and transform == "hessian by offset" and actual is backward_operator:
        pytest.skip("vmap over nothing, as jacfwd by an empty argument asks for, fails within torch")
    apply = TRANSFORMS[transform]
    leaves, tangents = tensors(N, masked, 0), tensors(N, masked, 1)
    assert_equal(apply(actual, leaves, tangents), apply(expected, leaves, tangents))


@each_level
@each_mask
@each_batch
def test_gradients_are_the_derivative(N: int, masked: bool, actual: Function, expected: Function) -> None:
    """By finite differences: reverse and forward mode, and both again over reverse mode."""
    leaves = [leaf.requires_grad_() for leaf in tensors(N, masked, 0)]
    assert torch.autograd.gradcheck(
        actual, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(
        actual, leaves, fast_mode=True, check_fwd_over_rev=True, check_batched_grad=N > 0
    )
    assert_equal(actual(*leaves), expected(*leaves))


def test_every_gradient_is_right_by_slow_gradcheck_too() -> None:
    leaves = [leaf.requires_grad_() for leaf in tensors(1, True, 0)]
    assert torch.autograd.gradcheck(public, leaves)


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_a_backend_that_is_forced_changes_no_derivative(name: str) -> None:
    leaves, tangents = tensors(2, True, 0), tensors(2, True, 1)
    with backend(name):
        for transform in ("jvp", "grad", "jvp of grad", "dual tensors through autograd"):
            apply = TRANSFORMS[transform]
            assert_equal(apply(public, leaves, tangents), apply(definition, leaves, tangents))


@each_level
@each_mask
def test_vmap_runs_over_any_of_the_arguments(masked: bool, actual: Function, expected: Function) -> None:
    plain = tensors(2, masked, 0)
    stacked = [torch.stack([a, b]) for a, b in zip(plain, tensors(2, masked, 1), strict=True)]
    for axes in itertools.product((0, None), repeat=len(plain)):
        if axes == (None,) * len(plain):
            continue
        arguments = [s if axis == 0 else p for s, p, axis in zip(stacked, plain, axes, strict=True)]
        each = [[a[i] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)] for i in range(2)]
        assert_equal(func.vmap(actual, axes)(*arguments), torch.stack([expected(*one) for one in each]))


@each_level
def test_vmap_takes_any_axis_and_nests_and_composes(actual: Function, expected: Function) -> None:
    stacked = [torch.stack([a, b]) for a, b in zip(tensors(2, True, 0), tensors(2, True, 1), strict=True)]
    each = [[s[i] for s in stacked] for i in range(2)]
    last = [s.movedim(0, -1) for s in stacked]
    assert_equal(func.vmap(actual, -1)(*last), torch.stack([expected(*one) for one in each]))

    inputs_inside = func.vmap(func.vmap(actual, (0, None, None, None)), (None, 0, 0, 0))(*stacked)
    both = [[expected(stacked[0][j], *one[1:]) for j in range(2)] for one in each]
    assert_equal(inputs_inside, torch.stack([torch.stack(row) for row in both]))

    gradient = func.grad(scalar(actual), (0, 1, 2, 3))
    expected_gradient = func.grad(scalar(expected), (0, 1, 2, 3))
    by_example = zip(*(expected_gradient(*one) for one in each), strict=True)
    assert_equal(func.vmap(gradient)(*stacked), [torch.stack(g) for g in by_example])


def test_a_linearized_call_equals_its_jvp() -> None:
    leaves, tangents = tensors(2, True, 0), tensors(2, True, 1)
    assert_equal(func.linearize(operator, *leaves)[1](*tangents), jvp(definition, leaves, tangents)[1])


def test_an_unwanted_gradient_is_empty_under_transforms_too() -> None:
    input, offset, weight, mask = tensors(2, True, 0)

    def second(x: Tensor) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.ops.torchdcn.deform_conv2d_backward(
            cotangent(x), x, offset, mask, weight, *NUMBERS, (False, True, False, False)
        )
        return gradients

    sizes = [g.numel() for g in func.jvp(second, (input,), (input,))[1]]
    assert sizes == [g.numel() for g in second(input)] == [0, offset.numel(), 0, 0]


def test_transforms_follow_autocast() -> None:
    input, offset, weight, mask = (t.float() for t in tensors(2, True, 0))
    with torch.autocast("cpu", torch.bfloat16):
        plain = public(input, offset, weight, mask)
        batched = func.vmap(public, (0, None, None, None))(input[None], offset, weight, mask)
        value, tangent = func.jvp(lambda x: public(x, offset, weight, mask), (input,), (input,))
    assert plain.dtype == batched.dtype == value.dtype == tangent.dtype == torch.bfloat16
    for other in (batched[0], value, tangent):  # linear in its input
        torch.testing.assert_close(other, plain, rtol=1e-2, atol=1e-2)


def test_gradients_within_autocast_are_as_exact_as_without() -> None:
    """The reference's own products must not become bfloat16 ones, where it stands in for a kernel."""
    leaves = [t.float().requires_grad_() for t in tensors(2, True, 0)]
    gradient = torch.randn(2, 6, 4, 3).requires_grad_()
    input, offset, weight, mask = leaves

    def second() -> list[Tensor]:
        first = torch.ops.torchdcn.deform_conv2d_backward(gradient, input, offset, mask, weight, *NUMBERS, WANTED)
        return [*first, *torch.autograd.grad([g.sum() for g in first], [gradient, *leaves])]

    plain = second()
    with torch.autocast("cpu", torch.bfloat16):
        within = second()
        with backend("reference"), torch.no_grad():
            by_reference = torch.ops.torchdcn.deform_conv2d_backward(
                gradient, input, offset, mask, weight, *NUMBERS, WANTED
            )
    for a, b in (*zip(plain, within, strict=True), *zip(plain[:4], by_reference, strict=True)):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_a_negated_view_is_read_as_what_it_stands_for() -> None:
    """``conj`` leaves a view that only carries a sign; a kernel that read its memory would get the sign wrong."""
    input, offset, weight, mask = tensors(2, True, 0)
    negated = torch.complex(input, -input).conj().imag
    assert negated.is_neg()
    assert_equal(public(negated, offset, weight, mask), public(input, offset, weight, mask))
