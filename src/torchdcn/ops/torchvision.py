"""torchvision's operator on our CPU kernels: ``accelerate_torchvision()`` and what it registers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from . import reference
from .backends import available_backends
from .checks import SIXTEEN_BITS
from .deform_conv2d import _check, _checked_bias

if TYPE_CHECKING:
    from torch import Tensor

_library: torch.library.Library | None = None  # kept: what it registered ends with it


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
    # Ours must also stand in front of torchvision's autograd, which answers a jvp with zeros and has no second
    # derivative. Inference mode leaves autograd out and meets the kernels behind it.
    pairs = {"CPU": (_forward, _backward), "AutogradCPU": (_autograd_forward, _autograd_backward)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that one is overridden: it is meant
        for key, (forward, backward) in pairs.items():
            library.impl("deform_conv2d", forward, key, allow_override=True)
            library.impl("_deform_conv2d_backward", backward, key, allow_override=True)
        library.impl("deform_conv2d", _autocast, "AutocastCPU", allow_override=True)
    _forget_routes()
    _library = library


def _forget_routes() -> None:
    """Makes torch.compile ask again which kernel serves a key; it would keep the answers from before."""
    for name in ("deform_conv2d", "_deform_conv2d_backward"):
        for key in ("CPU", "AutogradCPU", "AutocastCPU"):
            getattr(torch.ops.torchvision, name).default._uncache_dispatch(getattr(torch._C.DispatchKey, key))


def _ours(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Torchvision's arguments but the bias, in the order of our operators."""
    input, weight, offset, mask, _, *pairs, groups, offset_groups, use_mask = arguments
    return input, offset, mask if use_mask else None, weight, pairs[:2], pairs[2:4], pairs[4:], groups, offset_groups


def _shift(arguments: tuple[Any, ...]) -> Tensor:  # [1, Co, 1, 1]
    input, weight, bias = arguments[0], arguments[1], arguments[4]
    return _checked_bias(bias, input, weight).to(input.dtype)


def _forward(*arguments: Any) -> Tensor:
    output: Tensor = torch.ops.torchdcn.deform_conv2d.default(*_ours(arguments))
    # In place spares a pass over memory; contiguous is what torchvision's fake implementation promises.
    return output.add_(_shift(arguments)).contiguous()


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask, bias, use_mask = arguments[3], arguments[4], arguments[-1]
    grad_input, grad_offset, grad_mask, grad_weight = torch.ops.torchdcn.deform_conv2d_backward.default(
        grad, *_ours(arguments), [True, True, use_mask, True]
    )
    return (
        grad_input.contiguous(),
        grad_weight.contiguous(),
        grad_offset.contiguous(),
        grad_mask.contiguous() if use_mask else torch.zeros_like(mask),
        grad.sum((0, 2, 3)).to(bias.dtype),
    )


class _Traced(torch.autograd.Function):
    """Torchvision's pair of operators under their own names, for graphs that may run where torchdcn is not known.

    torch.compile's cache on disk is such a place: it does not tell processes apart by who called accelerate.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:5])
        ctx.numbers = arguments[5:]
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = torch.ops.torchvision.deform_conv2d(*arguments)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gradients = torch.ops.torchvision._deform_conv2d_backward(grad, *ctx.saved_tensors, *ctx.numbers)
        return *gradients, *(None for _ in ctx.numbers)


def _autograd_forward(*arguments: Any) -> Tensor:
    # Within torch.func only torch's own operators are differentiated level by level.
    if torch._C._are_functorch_transforms_active():
        _check(*_ours(arguments))
        return reference.deform_conv2d(*_ours(arguments)) + _shift(arguments)
    if _being_traced():
        return _Traced.apply(*arguments)  # type: ignore[no-any-return]
    return _forward(*arguments)


def _autograd_backward(*arguments: Any) -> Any:
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torchvision::_deform_conv2d_backward can't be transformed by torch.func; call deform_conv2d itself after "
            "accelerate_torchvision() and within the transform"
        )
    if _being_traced() and not (torch.is_grad_enabled() and any(t.requires_grad for t in arguments[:6])):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.torchvision._deform_conv2d_backward(*arguments)
    return _backward(*arguments)


def _being_traced() -> bool:
    """Whether a mode watches the operators; none keeps torchvision's names where forward-mode tangents may be about."""
    return torch._C._len_torch_dispatch_stack() > 0 and forward_ad._current_level < 0


def _autocast(*arguments: Any) -> Tensor:
    """Computes in input's dtype whatever the rest has; positions and masks in float32 stay so beside 16 bits.

    torchvision has no autocast on the CPU: equal dtypes pass through unchanged, here too, and unequal ones raise there.
    """
    dtype: torch.dtype = arguments[0].dtype
    tensors = [
        t if i in (2, 3) and t.dtype == torch.float32 and dtype in SIXTEEN_BITS else t.to(dtype)
        for i, t in enumerate(arguments[:5])
    ]
    if torch._C._are_functorch_transforms_active():
        # Below each of its levels autocast is on again, and would round the reference's products: not so in float64.
        tensors = [t.double() for t in tensors]
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        return torch.ops.torchvision.deform_conv2d(*tensors, *arguments[5:]).to(dtype)  # type: ignore[no-any-return]
