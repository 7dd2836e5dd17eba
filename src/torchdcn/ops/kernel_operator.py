"""What the operators share: their registration, and which implementation answers to which transform.

Kernels give values and first derivatives. Whatever asks for more (second derivatives, forward mode, torch.func) goes
to the operator's reference, which is differentiable as often as one likes. Left to itself, torch.library answers a jvp
with zeros and a second derivative with a wrong number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad

from .backends import backend_for, library, using

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AUTOCAST_DEVICES = ("cpu", "cuda")


def layout(tensor: Tensor) -> torch.memory_format:
    """channels_last where neighbouring channels are nearer to each other in memory than neighbouring pixels.

    So it is for slices of a channels-last tensor too, for one channel, and for an image [H, W, C] seen as
    [1, C, H, W]; a single pixel of a single channel, which could be either, is contiguous.
    """
    if tensor.dim() != 4:
        return torch.contiguous_format
    _, C, H, W = tensor.shape
    _, channel, row, pixel = tensor.stride()
    if H > 1:
        pixel = min(row, pixel) if W > 1 else row
    elif W <= 1 and C <= 1:
        return torch.contiguous_format
    return torch.channels_last if 0 < channel * C <= pixel else torch.contiguous_format


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself if it has no gaps in its layout, else a copy; kernels read nothing else."""
    return tensor.contiguous(memory_format=layout(tensor))


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The values in the very strides that a fresh tensor of another's layout has."""
    if torch._C._are_functorch_transforms_active():
        return tensor  # within vmap there is no layout to speak of
    kind = layout(like)
    _, C, H, W = tensor.shape
    strides = (C * H * W, H * W, W, 1) if kind == torch.contiguous_format else (C * H * W, 1, W * C, C)
    return tensor if tensor.stride() == strides else tensor.clone(memory_format=kind)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))


@dataclass(eq=False)
class KernelOperator:
    """An operator ``torchdcn::name(tensors..., numbers...) -> Tensor`` with kernels for its value and gradients.

    These schemas must be defined before: the operator itself; ``name_backward``, which takes grad_output,
    the operator's arguments and ``bool[] output_mask``, and gives a gradient for each of ``differentiable`` (an empty
    tensor where it isn't wanted or there is no such argument); and the kernels ``_name_cpp``, which takes a tensor for
    the output besides, and ``_name_backward_cpp``, which takes the gradients to write, None where not wanted. The
    two functions that ``triton`` returns have the signatures of these kernels.
    """

    name: str
    tensors: int  # so many leading arguments are tensors or None; the first is the features
    differentiable: tuple[int, ...]  # those that have a gradient
    features: tuple[int, ...]  # those that autocast casts
    contiguous: tuple[int, ...]  # those whose kernels know no channels-last
    check: Callable[..., tuple[int, ...]]  # raises what is wrong with the arguments, or gives the output's shape
    reference: Callable[..., Tensor]  # the definition
    bounded: tuple[Callable[..., None], Callable[..., None]]  # the definition in bounded memory, called as kernels are
    triton: Callable[[], tuple[Callable[..., None], Callable[..., None]]]  # imports the kernels of CUDA
    # Whether the reference's steps can be recorded for these arguments; else the operator stays one step of a graph.
    traceable: Callable[..., bool] = lambda *_: True

    def __post_init__(self) -> None:
        """Looks the operators up once: by name it would cost more than a small check."""
        ops = torch.ops.torchdcn
        self.value: Callable[..., Tensor] = getattr(ops, self.name).default
        self.gradients: Callable[..., Any] = getattr(ops, f"{self.name}_backward").default
        # Nothing answers to these names before the extension is loaded.
        self.cpp = getattr(ops, f"_{self.name}_cpp").default, getattr(ops, f"_{self.name}_backward_cpp").default

    def kernels(self, backend: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """A backend's kernels, for the value and for the gradients."""
        if backend == "reference":
            return self.bounded
        return self.triton() if backend == "triton" else self.cpp

    def register(self) -> None:
        """Gives the defined schemas their implementations, on all devices and under all transforms."""
        implementations: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
            "CPU": (_forward, _backward),
            "CompositeExplicitAutograd": (_forward, _backward),
            "Meta": (_fake, _fake_backward),
            "Autograd": (_autograd, _autograd_backward),
            # In front of functorch: its own way would lead through the kernels, past its levels of derivatives.
            "FuncTorchDynamicLayerFrontMode": (_under_transform, _gradients_by_reference),
        }
        for key, (value, gradients) in implementations.items():
            library.impl(self.name, partial(value, self), key)
            library.impl(f"{self.name}_backward", partial(gradients, self), key)
        for device in AUTOCAST_DEVICES:
            key = f"Autocast{device.upper()}"
            excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
            library.impl(self.name, partial(_autocast, self, excluded), key)


# Values


def _fake(op: KernelOperator, *arguments: Any) -> Tensor:
    return _empty(op.check(*arguments), arguments[0])


def _forward(op: KernelOperator, *arguments: Any) -> Tensor:
    backend = backend_for(arguments[0].device)
    output = _empty(op.check(*arguments), arguments[0])
    _run(op, backend, 0, *_for_kernel(op, backend, arguments), output)
    return output


def _run(op: KernelOperator, backend: str, direction: int, *arguments: Any) -> None:
    kernel = op.kernels(backend)[direction]
    if backend != "reference":
        return kernel(*arguments)
    with torch._C._DisableAutocast():  # for the reference is made of torch's operators
        return kernel(*arguments)


def _for_kernel(op: KernelOperator, backend: str, arguments: Sequence[Any]) -> list[Any]:
    if backend == "reference":  # which reads any strides
        return list(arguments)
    tensors = [
        t if t is None else t.contiguous() if i in op.contiguous else dense(t)
        for i, t in enumerate(arguments[: op.tensors])
    ]
    return [*tensors, *arguments[op.tensors :]]


def _by_reference(op: KernelOperator, *arguments: Any) -> Tensor:
    op.check(*arguments)
    with torch._C._DisableAutocast():
        return _laid_out(op.reference(*arguments), arguments[0])


# Gradients


def _check_backward(op: KernelOperator, grad_output: Tensor, arguments: Sequence[Any]) -> None:
    shape, input = op.check(*arguments), arguments[0]
    if tuple(grad_output.shape) != shape:
        raise ValueError(f"grad_output: expected shape {list(shape)}, got {list(grad_output.shape)}")
    if grad_output.device != input.device:
        raise RuntimeError(f"grad_output: expected device {input.device} as input's, got {grad_output.device}")
    if grad_output.dtype != input.dtype:
        raise TypeError(f"grad_output: expected input's {input.dtype}, got {grad_output.dtype}")


def _wanted(op: KernelOperator, arguments: Sequence[Any], output_mask: Sequence[bool]) -> list[Tensor | None]:
    """The arguments whose gradients are asked for, None in the others' places."""
    if len(output_mask) != len(op.differentiable):
        raise ValueError(f"output_mask: expected {len(op.differentiable)} entries, got {len(output_mask)}")
    return [arguments[i] if wanted else None for i, wanted in zip(op.differentiable, output_mask, strict=True)]


def _fake_backward(op: KernelOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *forward_arguments, output_mask = arguments
    _check_backward(op, grad_output, forward_arguments)
    wanted = _wanted(op, forward_arguments, output_mask)
    return tuple(grad_output.new_empty(0) if t is None else _empty(t.shape, t) for t in wanted)


def _backward(op: KernelOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    backend = backend_for(arguments[0].device)
    gradients = _fake_backward(op, grad_output, *arguments)
    *forward_arguments, output_mask = arguments
    written: list[Tensor | None] = [
        None if argument is None else gradient.contiguous() if i in op.contiguous else gradient
        for i, argument, gradient in zip(
            op.differentiable, _wanted(op, forward_arguments, output_mask), gradients, strict=True
        )
    ]
    _run(op, backend, 1, dense(grad_output), *_for_kernel(op, backend, forward_arguments), *written)
    for gradient, result in zip(gradients, written, strict=True):
        if result is not None and result is not gradient:  # contiguous() had to make another
            gradient.copy_(result)
    return gradients


def _gradients_by_reference(op: KernelOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The reference's own derivative, itself differentiable."""
    *forward_arguments, output_mask = arguments
    _check_backward(op, grad_output, forward_arguments)
    wanted = _wanted(op, forward_arguments, output_mask)
    places = [i for i, argument in zip(op.differentiable, wanted, strict=True) if argument is not None]

    def function(*varied: Tensor) -> Tensor:
        return op.reference(*_replaced(forward_arguments, places, varied))

    found: dict[int, Tensor] = {}
    if places:
        with torch._C._DisableAutocast():
            pullback = torch.func.vjp(function, *(forward_arguments[i] for i in places))[1]
            found = dict(zip(places, pullback(grad_output), strict=True))
    return tuple(
        grad_output.new_empty(0) if argument is None else _laid_out(found[i], argument)
        for i, argument in zip(op.differentiable, wanted, strict=True)
    )


def _replaced(arguments: Sequence[Any], places: Sequence[int], new: Sequence[Tensor]) -> list[Any]:
    replaced = dict(zip(places, new, strict=True))
    return [replaced.get(i, argument) for i, argument in enumerate(arguments)]


# Autograd: kernels for values and gradients, the reference for what lies beyond.


class _Forward(torch.autograd.Function):
    """Runs the operator and remembers which backend did, so that the same one runs backward."""

    @staticmethod
    def forward(ctx: Any, op: KernelOperator, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[: op.tensors])
        ctx.op, ctx.numbers = op, arguments[op.tensors :]
        ctx.backend = backend_for(arguments[0].device)
        return _value(op, *arguments)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        op: KernelOperator = ctx.op
        wanted = [ctx.needs_input_grad[1 + i] for i in op.differentiable]
        with using(ctx.backend):
            found = op.gradients(grad_output, *ctx.saved_tensors, *ctx.numbers, wanted)
        gradients: list[Tensor | None] = [None] * (1 + op.tensors + len(ctx.numbers))
        for i, is_wanted, gradient in zip(op.differentiable, wanted, found, strict=True):
            gradients[1 + i] = gradient if is_wanted else None
        return tuple(gradients)


class _Backward(torch.autograd.Function):
    """Runs the backward operator; its own derivative is taken through the reference."""

    @staticmethod
    def forward(ctx: Any, op: KernelOperator, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*arguments[: 1 + op.tensors])
        ctx.op, ctx.numbers = op, arguments[1 + op.tensors :]
        return _gradients(op, *arguments)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        op: KernelOperator = ctx.op
        arguments = [*ctx.saved_tensors, *ctx.numbers]
        places = [i for i in range(1 + op.tensors) if ctx.needs_input_grad[1 + i]]

        def function(*varied: Tensor) -> tuple[Tensor, ...]:
            return _gradients_by_reference(op, *_replaced(arguments, places, varied))

        with torch._C._DisableAutocast():
            pullback = torch.func.vjp(function, *(arguments[i] for i in places))[1]
            found = pullback(cotangents)
        gradients: list[Tensor | None] = [None] * (1 + len(arguments))
        for i, gradient in zip(places, found, strict=True):
            gradients[1 + i] = gradient
        return tuple(gradients)


def _autograd(op: KernelOperator, *arguments: Any) -> Tensor:
    tensors = arguments[: op.tensors]
    if _has_tangent(tensors) or _records_reference(op, arguments):
        return _by_reference(op, *arguments)
    if _needs_gradient(tensors):
        return _Forward.apply(op, *arguments)  # type: ignore[no-any-return]
    return _value(op, *arguments)


def _autograd_backward(op: KernelOperator, *arguments: Any) -> tuple[Tensor, ...]:
    tensors = arguments[: 1 + op.tensors]
    if _has_tangent(tensors) or _records_reference(op, arguments[1:-1]):
        return _gradients_by_reference(op, *arguments)
    if _needs_gradient(tensors):
        return _Backward.apply(op, *arguments)  # type: ignore[no-any-return]
    return _gradients(op, *arguments)


def _records_reference(op: KernelOperator, arguments: Sequence[Any]) -> bool:
    """Whether a graph records the definition's own steps, and torch differentiates them."""
    on_reference = backend_for(arguments[0].device) == "reference"
    return on_reference and _recorded(arguments[0]) and op.traceable(*arguments)


def _runs_reference(input: Tensor) -> bool:
    return backend_for(input.device) == "reference" and not _recorded(input)


def _recorded(tensor: Tensor) -> bool:
    return detect_fake_mode((tensor,)) is not None


def _value(op: KernelOperator, *arguments: Any) -> Tensor:
    if _nothing_between(arguments[: op.tensors]) or _runs_reference(arguments[0]):
        return _forward(op, *arguments)
    return _below_autograd(op.value, *arguments)  # type: ignore[no-any-return]


def _gradients(op: KernelOperator, *arguments: Any) -> tuple[Tensor, ...]:
    if _nothing_between(arguments[: 1 + op.tensors]) or _runs_reference(arguments[1]):
        return _backward(op, *arguments)
    return tuple(_below_autograd(op.gradients, *arguments))


def _nothing_between(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the dispatcher would find nothing between autograd and the CPU; asking it again costs 10 microseconds."""
    return torch._C._len_torch_dispatch_stack() == 0 and all(
        t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu") for t in tensors
    )


def _below_autograd(operator: Callable[..., Any], *arguments: Any) -> Any:
    """Calls an operator's next implementation from within that for autograd."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors if t is not None)


def _needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None)


# Autocast: the rule of torch's own convolution for the features. Positions and masks keep what digits they have.


def _autocasted(op: KernelOperator, arguments: Sequence[Any]) -> Sequence[Any]:
    device = arguments[0].device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return arguments
    dtype = torch.get_autocast_dtype(device)
    return [_cast(a, dtype, device) if i in op.features else a for i, a in enumerate(arguments)]


def _cast(tensor: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == device
    return tensor.to(dtype) if eligible else tensor


def _autocast(op: KernelOperator, excluded: Any, *arguments: Any) -> Tensor:
    arguments = tuple(_autocasted(op, arguments))
    with torch._C._ExcludeDispatchKeyGuard(excluded):
        return op.value(*arguments)


def _under_transform(op: KernelOperator, *arguments: Any) -> Tensor:
    return _by_reference(op, *_autocasted(op, arguments))  # the transforms come before autocast
