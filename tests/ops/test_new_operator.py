"""What it takes to add an operator: a sum of weighted bilinear samples, registered in the lines between the two rules.

It shares no shape with the others: a channels-last map, one position a sample, an output of three dimensions. It has no
kernels of its own, so the reference serves every device; all derivatives and transforms come with the registration.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch._subclasses.fake_tensor import FakeTensorMode

from torchdcn.ops import backend
from torchdcn.ops.checks import check_dtype, check_tensor
from torchdcn.ops.dispatch import KernelOperator
from torchdcn.ops.sampling import bilinear, sum_dtype

# ----------------------------------------------------------------------------------------------------------------------


def check(input: Tensor, points: Tensor, weights: Tensor) -> tuple[int, ...]:  # the output's shape
    for name, tensor, dimensions in (("input", input, 4), ("points", points, 4), ("weights", weights, 3)):
        check_tensor(name, tensor, dimensions, input)
        check_dtype(name, tensor, input, position=name == "points")
    if points.shape[0] != input.shape[0] or points.shape[3] != 2:
        raise ValueError(f"points: expected [{input.shape[0]}, K, P, 2], got {list(points.shape)}")
    if weights.shape != points.shape[:3]:
        raise ValueError(f"weights: expected shape {list(points.shape[:3])}, got {list(weights.shape)}")
    return (*points.shape[:2], input.shape[3])


def definition(input: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """out[k] = sum_p weights[k, p] bilinear(input, points[k, p]); points are (x, y) in pixels."""
    (N, K, P, _), C, dtype = points.shape, input.shape[3], sum_dtype(input)
    x, y = points.to(dtype).reshape(N, 1, K * P, 2).unbind(3)
    samples = bilinear(input.to(dtype).permute(0, 3, 1, 2), y, x).reshape(N, C, K, P)
    return (samples * weights.to(dtype).unsqueeze(1)).sum(3).transpose(1, 2).to(input.dtype)


WEIGHTED_SAMPLES = KernelOperator(
    "test_weighted_samples",
    "Tensor input, Tensor points, Tensor weights",
    differentiable=("input", "points", "weights"),
    features=("input", "weights"),
    check=check,
    reference=definition,
).register()

# ----------------------------------------------------------------------------------------------------------------------

operator: Callable[..., Tensor] = torch.ops.torchdcn.test_weighted_samples
Function = Callable[..., Any]


def leaves(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    """A map [N, H, W, C] of 4 x 5 pixels, points [N, K, P, 2] on and off it, and their weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 4, 5, 3), (2, 6, 4, 2), (2, 6, 4)
    input, points, weights = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return tuple(t.to(dtype) for t in (input, 2 + 1.5 * points, weights))


def by_hand(input: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The formula in loops, on Python's numbers."""
    (N, H, W, C), (_, K, P, _) = input.shape, points.shape
    output = torch.zeros(N, K, C, dtype=input.dtype)
    for n, k, p, row, column in itertools.product(range(N), range(K), range(P), range(H), range(W)):
        x, y = points[n, k, p].tolist()
        share = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
        output[n, k] += weights[n, k, p] * share * input[n, row, column]
    return output


def scalar(function: Function) -> Function:
    return lambda *arguments: function(*arguments).sin().sum()


def directional(function: Function, arguments: Sequence[Tensor], tangents: Sequence[Tensor]) -> Any:
    return func.jvp(function, tuple(arguments), tuple(tangents))


TRANSFORMS: dict[str, Callable[[Function], Any]] = {
    "value": lambda f: f(*leaves()),
    "jvp": lambda f: directional(f, leaves(), leaves(seed=1)),
    "grad": lambda f: func.grad(scalar(f), (0, 1, 2))(*leaves()),
    "hessian": lambda f: func.hessian(scalar(f), 1)(*leaves()),
    "jvp of grad": lambda f: directional(func.grad(scalar(f), (0, 1, 2)), leaves(), leaves(seed=1)),
    "vmap": lambda f: func.vmap(f, (0, None, 1))(
        torch.stack([leaves()[0], leaves(seed=1)[0]]), leaves()[1], torch.stack([leaves()[2], leaves(seed=1)[2]], 1)
    ),
}


def test_it_is_the_formula() -> None:
    torch.testing.assert_close(operator(*leaves()), by_hand(*leaves()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_is_that_of_the_definition(transform: str) -> None:
    apply = TRANSFORMS[transform]
    torch.testing.assert_close(apply(operator), apply(definition), rtol=1e-12, atol=1e-12)


def test_gradients_and_second_derivatives_are_right_by_finite_differences() -> None:
    varied = [t.requires_grad_() for t in leaves()]
    assert torch.autograd.gradcheck(operator, varied, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(operator, varied, fast_mode=True, check_fwd_over_rev=True)


def test_dual_tensors_keep_their_tangents() -> None:
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t, tangent) for t, tangent in zip(leaves(), leaves(seed=1), strict=True)]
        found = tuple(forward_ad.unpack_dual(operator(*dual)))
    torch.testing.assert_close(found, directional(definition, leaves(), leaves(seed=1)))


def test_it_compiles_without_a_break_forward_and_backward() -> None:
    def gradients(function: Function) -> tuple[Tensor, ...]:
        varied = [t.requires_grad_() for t in leaves(torch.float32)]
        return torch.autograd.grad(scalar(function)(*varied), varied)

    compiled = torch.compile(lambda *t: operator(*t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves(torch.float32)), operator(*leaves(torch.float32)))
    torch.testing.assert_close(gradients(compiled), gradients(operator))


def test_fake_and_meta_tensors_have_the_shape_and_strides_of_the_real_output() -> None:
    real = operator(*leaves())
    with FakeTensorMode() as mode:
        fake = operator(*(mode.from_tensor(t) for t in leaves()))
    meta = operator(*(t.to("meta") for t in leaves()))
    for output in (fake, meta):
        assert (output.shape, output.stride(), output.dtype) == (real.shape, real.stride(), real.dtype)
    assert real.shape == (2, 6, 3)
    assert real.is_contiguous()


def test_opcheck_finds_nothing_forward_or_backward() -> None:
    varied = tuple(t.requires_grad_() for t in leaves())
    torch.library.opcheck(operator.default, varied)  # type: ignore[attr-defined]
    gradient = torch.randn(2, 6, 3, dtype=torch.float64)
    backward = torch.ops.torchdcn.test_weighted_samples_backward.default
    torch.library.opcheck(backward, (gradient, *varied, [True, False, True]))


def test_16_bits_and_autocast_round_once() -> None:
    input, points, weights = leaves(torch.float32)
    low = operator(input.bfloat16(), points, weights.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        cast = operator(input, points, weights)
    assert low.dtype == cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast, low, rtol=0, atol=0)
    torch.testing.assert_close(low.float(), operator(input, points, weights), rtol=2e-2, atol=2e-2)


def test_a_wrong_argument_is_named() -> None:
    input, points, weights = leaves()
    with pytest.raises(ValueError, match=r"weights: expected shape \[2, 6, 4\], got \[2, 6, 3\]"):
        operator(input, points, weights[..., :3])


def test_a_backend_that_it_has_no_kernels_of_is_refused_when_forced() -> None:
    with backend("cpp"), pytest.raises(RuntimeError, match=r"backend\('cpp'\): this operator runs on 'reference' only"):
        operator(*leaves())
    with backend("reference"):
        assert operator(*leaves()).shape == (2, 6, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"differentiable": ("input", "point")}, "expected the name of a tensor in .*, got 'point'"),
        ({"differentiable": ("input",)}, "expected two or more differentiable arguments"),
        ({"arguments": "int count, Tensor input, Tensor points"}, "expected tensors before numbers"),
    ],
)
def test_a_wrong_registration_says_what_is_expected(change: dict[str, Any], message: str) -> None:
    described = {"arguments": "Tensor input, Tensor points", "differentiable": ("input", "points")} | change
    with pytest.raises(ValueError, match=message):
        KernelOperator("test_wrong", check=check, reference=definition, **described)  # type: ignore[arg-type]
