"""torchvision's operator on our CPU kernels: ``accelerate_torchvision()`` and what it registers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from ._torch_private import (
    below_autograd,
    excluding,
    forget_route,
    forward_mode_active,
    modes_active,
    transforms_active,
)
from .backends import available_backends
from .checks import SIXTEEN_BITS
from .deform_conv2d import check_arguments, checked_bias, reference

if TYPE_CHECKING:
    from torch import Tensor

_library: torch.library.Library | None = None  # kept alive: its registrations end with it


def accelerate_torchvision() -> None:
    """Runs ``torchvision.ops.deform_conv2d`` on our CPU kernels from here on, in the whole process.

    It replaces the operator below torchvision's function, so it reaches every model: those that imported the function
    or ``DeformConv2d`` before, TorchScript, and graphs that were compiled before. A second call does nothing. CUDA and
    all other devices keep torchvision's own kernels.

    Values and derivatives are torchvision's, up to rounding, and the output is contiguous as torchvision's is. What
    torchvision refuses or gets wrong works: bfloat16, autocast (the output has input's dtype), second derivatives,
    ``torch.func.jvp`` (torchvision gives zeros). Two things differ: a NaN in an offset always gives NaN where it is
    used, and a shape or dtype that does not fit raises ``ValueError`` or ``TypeError`` with the argument's name.
    Compiled and exported graphs keep torchvision's operator, so they also load where torchdcn is not installed.

    Raises:
        RuntimeError: There are no C++ kernels here, or torchvision's operators are missing; the message says why.
        ImportError: torchvision can't be imported.

    Example:
        >>> import torch, torchvision
        >>> from torchdcn.ops import accelerate_torchvision
        >>> layer = torchvision.ops.DeformConv2d(16, 24, 3, padding=1)
        >>> accelerate_torchvision()
        >>> layer(torch.rand(2, 16, 32, 48), torch.zeros(2, 18, 32, 48)).shape
        torch.Size([2, 24, 32, 48])
    """
    global _library
    if _library is not None:
        return
    if reason := available_backends()["cpp"]:
        raise RuntimeError(f"accelerate_torchvision: no C++ kernels here: {reason}")
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(
            f"accelerate_torchvision: torchvision can't be imported ({error}); install the one that matches torch "
            f"{torch.__version__}"
        ) from error
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        raise RuntimeError(
            f"accelerate_torchvision: torchvision {torchvision.__version__} has no compiled operators here; install "
            f"the one that matches torch {torch.__version__}"
        )
    library = torch.library.Library("torchvision", "IMPL")
    # "AutogradCPU" replaces torchvision's autograd, which answers a jvp with zeros and has no second derivative.
    # "CPU" serves inference mode, which leaves autograd out.
    pairs = {"CPU": (_forward, _backward), "AutogradCPU": (_autograd_forward, _autograd_backward)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # an override is intended
        for key, (forward, backward) in pairs.items():
            library.impl("deform_conv2d", forward, key, allow_override=True)
            library.impl("_deform_conv2d_backward", backward, key, allow_override=True)
        library.impl("deform_conv2d", _autocast, "AutocastCPU", allow_override=True)
    _forget_routes()
    _library = library


def _forget_routes() -> None:
    """Makes torch.compile look the kernels up again; it keeps the ones it found before."""
    for name in ("deform_conv2d", "_deform_conv2d_backward"):
        for key in ("CPU", "AutogradCPU", "AutocastCPU"):
            forget_route(getattr(torch.ops.torchvision, name).default, key)


def _our_arguments(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Puts torchvision's arguments, without the bias, in the order of our operator."""
    input, weight, offset, mask, _, *pairs, groups, offset_groups, use_mask = arguments
    return input, offset, mask if use_mask else None, weight, pairs[:2], pairs[2:4], pairs[4:], groups, offset_groups


def _bias_column(arguments: tuple[Any, ...]) -> Tensor:  # [1, Co, 1, 1]
    input, weight, bias = arguments[0], arguments[1], arguments[4]
    return checked_bias(bias, input, weight).to(input.dtype)


def _forward(*arguments: Any) -> Tensor:
    output: Tensor = torch.ops.torchdcn.deform_conv2d.default(*_our_arguments(arguments))
    # In place saves a pass over memory. Contiguous, as torchvision's fake implementation promises.
    return output.add_(_bias_column(arguments)).contiguous()


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask, bias, use_mask = arguments[3], arguments[4], arguments[-1]
    grad_input, grad_offset, grad_mask, grad_weight = torch.ops.torchdcn.deform_conv2d_backward.default(
        grad, *_our_arguments(arguments), [True, True, use_mask, True]
    )
    return (
        grad_input.contiguous(),
        grad_weight.contiguous(),
        grad_offset.contiguous(),
        grad_mask.contiguous() if use_mask else torch.zeros_like(mask),
        grad.sum((0, 2, 3)).to(bias.dtype),
    )


class _Traced(torch.autograd.Function):
    """Calls torchvision's two operators by their own names, for graphs that may run where torchdcn is missing.

    torch.compile's cache on disk is such a place: it does not tell processes apart by who called accelerate.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:5])
        ctx.numbers = arguments[5:]
        with below_autograd():
            output: Tensor = torch.ops.torchvision.deform_conv2d(*arguments)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradients = torch.ops.torchvision._deform_conv2d_backward(grad, *ctx.saved_tensors, *ctx.numbers)
        return *gradients, *(None for _ in ctx.numbers)


def _autograd_forward(*arguments: Any) -> Tensor:
    # torch.func differentiates only torch's own operators level by level.
    if transforms_active():
        check_arguments(*_our_arguments(arguments))
        return reference.deform_conv2d(*_our_arguments(arguments)) + _bias_column(arguments)
    if _being_traced():
        return _Traced.apply(*arguments)  # type: ignore[no-any-return]
    return _forward(*arguments)


def _autograd_backward(*arguments: Any) -> Any:
    if transforms_active():
        raise RuntimeError(
            "torchvision::_deform_conv2d_backward can't be transformed by torch.func; call deform_conv2d itself after "
            "accelerate_torchvision() and within the transform"
        )
    if _being_traced() and not (torch.is_grad_enabled() and any(t.requires_grad for t in arguments[:6])):
        with below_autograd():
            return torch.ops.torchvision._deform_conv2d_backward(*arguments)
    return _backward(*arguments)


def _being_traced() -> bool:
    """Whether a mode records operators by name. Not in forward mode, where only the reference keeps tangents."""
    return modes_active() and not forward_mode_active()


def _autocast(*arguments: Any) -> Tensor:
    """Computes in input's dtype; float32 positions and masks stay so beside 16 bits.

    torchvision has no autocast on the CPU: equal dtypes pass through unchanged, here too, and unequal ones raise there.
    """
    dtype: torch.dtype = arguments[0].dtype
    tensors = [
        t if i in (2, 3) and t.dtype == torch.float32 and dtype in SIXTEEN_BITS else t.to(dtype)
        for i, t in enumerate(arguments[:5])
    ]
    if transforms_active():
        # Each level of a transform turns autocast on again, which would round the reference's products. It leaves
        # float64 alone.
        tensors = [t.double() for t in tensors]
    with excluding("AutocastCPU")():
        return torch.ops.torchvision.deform_conv2d(*tensors, *arguments[5:]).to(dtype)  # type: ignore[no-any-return]
