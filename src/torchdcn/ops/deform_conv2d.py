"""Modulated deformable convolution: the public function, its checks, schema, fake and autograd, in that order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .backends import backend, backend_for, library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2 G K, Ho, Wo]
    weight: Tensor,  # [Co, C / groups, kh, kw]
    bias: Tensor | None = None,  # [Co]
    stride: int | tuple[int, int] = (1, 1),
    padding: int | tuple[int, int] = (0, 0),
    dilation: int | tuple[int, int] = (1, 1),
    mask: Tensor | None = None,  # [N, G K, Ho, Wo]
) -> Tensor:  # [N, Co, Ho, Wo]
    """Convolution whose every sample is moved by ``offset`` and weighed by ``mask``.

    ``y(p) = sum_k w_k x(p + p_k + dp_k) dm_k`` with bilinear sampling of a map that is zero outside: Deformable
    ConvNets v2, arXiv 1811.11168, equation 1; without a mask it is v1. The signature is torchvision's.

    The numbers of groups follow from the shapes: ``groups = C / weight.shape[1]`` and, with ``K = kh kw`` taps,
    ``G = offset.shape[1] / (2 K)`` deformable groups, each moving ``C / G`` neighbouring channels.

    Args:
        input: ``[N, C, H, W]``. A channels-last input gives a channels-last output and is not copied.
        offset: ``[N, 2 G K, Ho, Wo]`` in pixels of the input; per group, per tap in row-major order, ``(dy, dx)``.
        weight: ``[Co, C / groups, kh, kw]``.
        bias: ``[Co]`` or None.
        stride: Step between outputs, in input pixels, as an int or ``(vertical, horizontal)``.
        padding: Zeros around the input on each side, in the same form.
        dilation: Step between taps, in the same form.
        mask: ``[N, G K, Ho, Wo]``, one factor per group and tap, or None for all ones.

    Returns:
        ``[N, Co, Ho, Wo]`` in input's dtype. bfloat16 and float16 accumulate in float32.

    Raises:
        ValueError: A shape or number that does not fit; the message names the argument.
        TypeError: A dtype that does not fit. ``offset`` and ``mask`` have input's dtype, or float32 beside
            bfloat16 and float16, where positions need more digits than features do.
        RuntimeError: Tensors on different devices.

    Example:
        >>> import torch
        >>> from torchdcn.ops import deform_conv2d
        >>> x, weight = torch.rand(2, 16, 32, 48), torch.rand(24, 16, 3, 3)
        >>> offset, mask = torch.randn(2, 18, 32, 48), torch.rand(2, 9, 32, 48)
        >>> deform_conv2d(x, offset, weight, padding=1, mask=mask).shape
        torch.Size([2, 24, 32, 48])
    """
    _check_types({"input": input, "offset": offset, "weight": weight}, {"bias": bias, "mask": mask})
    # The counts of groups are derived here and checked with everything else, by the operator.
    taps = max(1, weight.shape[2] * weight.shape[3]) if weight.dim() == 4 else 1
    groups = input.shape[1] // max(1, weight.shape[1]) if input.dim() == weight.dim() == 4 else 1
    deform_groups = offset.shape[1] // (2 * taps) if offset.dim() == 4 else 1
    output: Tensor = torch.ops.torchdcn.deform_conv2d(
        input, offset, mask, weight, _pair(stride, "stride"), _pair(padding, "padding"), _pair(dilation, "dilation"),
        groups, deform_groups,
    )  # fmt: skip
    return output if bias is None else output + _checked_bias(bias, input, weight).to(output.dtype)


def _checked_bias(bias: Tensor, input: Tensor, weight: Tensor) -> Tensor:  # [1, Co, 1, 1]
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape [{weight.shape[0]}], got {list(bias.shape)}")
    if bias.device != input.device:
        raise RuntimeError(f"bias: expected device {input.device} as input's, got {bias.device}")
    if bias.dtype not in (input.dtype, weight.dtype):  # under autocast the two may differ
        raise TypeError(f"bias: expected weight's {weight.dtype}, got {bias.dtype}")
    return bias.reshape(1, -1, 1, 1)


def _pair(value: int | Sequence[int], name: str) -> list[int]:
    pair = [value, value] if isinstance(value, (int, torch.SymInt)) else value
    if not isinstance(pair, (tuple, list)) or not all(isinstance(n, (int, torch.SymInt)) for n in pair):
        raise TypeError(f"{name}: expected an int or a pair of ints, got {value!r}")
    return list(pair)


# Checks: everything a kernel relies on, once, before any of them runs.


def _check(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    deform_groups: int,
) -> tuple[int, int, int, int]:  # the output's shape
    tensors = {"input": input, "offset": offset, "weight": weight} | ({} if mask is None else {"mask": mask})
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ValueError(f"{name}: expected 4 dimensions, got shape {list(tensor.shape)}")
        if tensor.device != input.device:
            raise RuntimeError(f"{name}: expected device {input.device} as input's, got {tensor.device}")
    _check_dtypes(tensors)
    _check_numbers(stride, padding, dilation)

    N, C, H, W = input.shape
    Co, channels, kh, kw = weight.shape
    G, K = deform_groups, kh * kw
    if max(H, W) >= 2**31:
        raise ValueError(f"input: expected height and width below 2^31, got {H} x {W}")
    if min(C, H, W, *weight.shape) < 1:
        name = "weight" if min(weight.shape) < 1 else "input"
        raise ValueError(f"{name}: only the batch may be empty, got shape {list(tensors[name].shape)}")
    if groups < 1 or channels * groups != C or Co % groups:
        raise ValueError(
            f"weight: expected [Co, C / groups, kh, kw] with groups dividing C and Co, "
            f"got {list(weight.shape)} for an input of {C} channels"
        )
    if G < 1 or C % G or offset.shape[1] != 2 * G * K:
        raise ValueError(
            f"offset: expected 2 * deform_groups * {kh} * {kw} channels with deform_groups dividing input's {C} "
            f"channels, got {offset.shape[1]}"
        )
    Ho, Wo = reference.output_size((H, W), (kh, kw), stride, padding, dilation)
    if Ho < 1 or Wo < 1:
        raise ValueError(
            f"input: a map of {H} x {W} is too small for a {kh} x {kw} kernel with padding {tuple(padding)} "
            f"and dilation {tuple(dilation)}: the output would be {Ho} x {Wo}"
        )
    expected = {"offset": [N, 2 * G * K, Ho, Wo], "mask": [N, G * K, Ho, Wo]}
    for name, shape in expected.items():
        if name in tensors and list(tensors[name].shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {list(tensors[name].shape)}")
    return N, Co, Ho, Wo


def _check_types(tensors: dict[str, Any], optional: dict[str, Any]) -> None:
    for name, tensor in (tensors | {n: t for n, t in optional.items() if t is not None}).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")


def _check_dtypes(tensors: dict[str, Tensor]) -> None:
    dtype = tensors["input"].dtype
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"input: expected float64, float32, bfloat16 or float16, got {dtype}")
    for name, tensor in tensors.items():
        allowed = {dtype}
        if name in ("offset", "mask") and dtype in (torch.bfloat16, torch.float16):
            allowed.add(torch.float32)
        if tensor.dtype not in allowed:
            expected = " or ".join(sorted(map(str, allowed)))
            raise TypeError(f"{name}: expected {expected} beside an input of {dtype}, got {tensor.dtype}")


def _check_numbers(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2:
            raise ValueError(f"{name}: expected an int or a pair of ints, got {tuple(pair)}")
        if min(pair) < least:
            raise ValueError(f"{name}: expected at least {least}, got {tuple(pair)}")


# The operators

_ARGUMENTS = (
    "Tensor input, Tensor offset, Tensor? mask, Tensor weight, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, SymInt deform_groups"
)
library.define(f"deform_conv2d({_ARGUMENTS}) -> Tensor")
library.define(
    f"deform_conv2d_backward(Tensor grad_output, {_ARGUMENTS}, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)"
)  # gradients of input, offset, mask, weight; an empty tensor where output_mask says it isn't wanted

# The C++ kernels, which write into tensors that Python allocates. An absent gradient is not computed.
library.define(f"_deform_conv2d_cpp({_ARGUMENTS}, Tensor(a!) output) -> ()")
library.define(
    f"_deform_conv2d_backward_cpp(Tensor grad_output, {_ARGUMENTS}, Tensor(a!)? grad_input, "
    "Tensor(b!)? grad_offset, Tensor(c!)? grad_mask, Tensor(d!)? grad_weight) -> ()"
)

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _layout(tensor: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is stored so (and not also contiguous, as a map of one channel is)."""
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


def _fake(input: Tensor, *others: Any) -> Tensor:
    return input.new_empty(_check(input, *others)).contiguous(memory_format=_layout(input))


def _empty_gradients(inputs: Sequence[Tensor | None], output_mask: Sequence[bool], like: Tensor) -> list[Tensor]:
    return [
        torch.empty_like(t, memory_format=_layout(t)) if wanted and t is not None else like.new_empty(0)
        for t, wanted in zip(inputs, output_mask, strict=True)
    ]


def _check_backward(grad_output: Tensor, arguments: Sequence[Any]) -> None:
    shape = _check(*arguments)
    if tuple(grad_output.shape) != shape:
        raise ValueError(f"grad_output: expected shape {list(shape)}, got {list(grad_output.shape)}")
    if grad_output.device != arguments[0].device:
        raise RuntimeError(f"grad_output: expected device {arguments[0].device} as input's, got {grad_output.device}")
    if grad_output.dtype != arguments[0].dtype:
        raise TypeError(f"grad_output: expected input's {arguments[0].dtype}, got {grad_output.dtype}")


def _fake_backward(grad_output: Tensor, *arguments: Any) -> Gradients:
    *arguments_, output_mask = arguments
    _check_backward(grad_output, arguments_)
    return tuple(_empty_gradients(arguments_[:4], output_mask, grad_output))  # type: ignore[return-value]


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself if it is contiguous in either layout, else a copy; kernels read nothing else."""
    return tensor.contiguous(memory_format=_layout(tensor))


def _forward(*arguments: Any) -> Tensor:
    input, offset, mask, weight, *numbers = arguments
    shape = _check(*arguments)
    if backend_for(input.device) == "reference":
        return reference.deform_conv2d(*arguments).contiguous(memory_format=_layout(input))
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=_layout(input))
    torch.ops.torchdcn._deform_conv2d_cpp(
        _dense(input),
        _dense(offset),
        None if mask is None else _dense(mask),
        weight.contiguous(),
        *numbers,
        output,
    )
    return output


def _backward(grad_output: Tensor, *arguments: Any) -> Gradients:
    *forward_arguments, output_mask = arguments
    input, offset, mask, weight, *numbers = forward_arguments
    _check_backward(grad_output, forward_arguments)
    if backend_for(input.device) == "reference":
        return _reference_backward(grad_output, *arguments)
    input, offset, mask = _dense(input), _dense(offset), None if mask is None else _dense(mask)
    weight = weight.contiguous()
    gradients = _empty_gradients((input, offset, mask, weight), output_mask, grad_output)
    torch.ops.torchdcn._deform_conv2d_backward_cpp(
        _dense(grad_output),
        input,
        offset,
        mask,
        weight,
        *numbers,
        *(g if g.numel() else None for g in gradients),
    )
    return tuple(gradients)  # type: ignore[return-value]


def _reference_backward(grad_output: Any, *arguments: Any) -> Gradients:
    """The reference's own derivative, itself differentiable."""
    *forward_arguments, output_mask = arguments
    tensors, numbers = forward_arguments[:4], forward_arguments[4:]
    chosen = [i for i in range(4) if output_mask[i] and tensors[i] is not None]

    def function(*varied: Tensor) -> Tensor:
        return reference.deform_conv2d(*_replaced(tensors, chosen, varied), *numbers)

    gradients = [grad_output.new_empty(0)] * 4
    if chosen:
        pullback = torch.func.vjp(function, *(tensors[i] for i in chosen))[1]
        for i, gradient in zip(chosen, pullback(grad_output), strict=True):
            gradients[i] = gradient
    return tuple(gradients)


def _replaced(tensors: Sequence[Tensor | None], places: Sequence[int], new: Sequence[Tensor]) -> list[Any]:
    replaced = dict(zip(places, new, strict=True))
    return [replaced.get(i, tensor) for i, tensor in enumerate(tensors)]


# Autograd: kernels first; the reference where a transform asks for more than they can give.


def _transformed(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a torch.func transform is active, or a tensor carries a forward-mode tangent.

    Left to itself, torch.library answers a jvp with zeros and a second derivative with a wrong number.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors if t is not None)


class _Forward(torch.autograd.Function):
    """Runs the operator and remembers which backend did, so that the same one runs backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:4])
        ctx.numbers = arguments[4:]
        ctx.backend = backend_for(arguments[0].device)
        output: Tensor = _below_autograd(torch.ops.torchdcn.deform_conv2d, *arguments)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        wanted = ctx.needs_input_grad[:4]
        with backend(ctx.backend):
            gradients = torch.ops.torchdcn.deform_conv2d_backward(grad_output, *ctx.saved_tensors, *ctx.numbers, wanted)
        return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None for _ in ctx.numbers)


class _Backward(torch.autograd.Function):
    """Runs the backward operator; its own derivative is taken through the reference."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Gradients:
        ctx.save_for_backward(*arguments[:5])
        ctx.numbers = arguments[5:]
        gradients: Gradients = _below_autograd(torch.ops.torchdcn.deform_conv2d_backward, *arguments)
        return gradients

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        tensors = ctx.saved_tensors
        chosen = [i for i in range(5) if ctx.needs_input_grad[i]]

        def function(*varied: Tensor) -> Gradients:
            return _reference_backward(*_replaced(tensors, chosen, varied), *ctx.numbers)

        pullback = torch.func.vjp(function, *(tensors[i] for i in chosen))[1]
        gradients: list[Tensor | None] = [None] * (5 + len(ctx.numbers))
        for i, gradient in zip(chosen, pullback(cotangents), strict=True):
            gradients[i] = gradient
        return tuple(gradients)


def _below_autograd(operator: Callable[..., Any], *arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _autograd_forward(*arguments: Any) -> Tensor:
    if _transformed(arguments[:4]) or backend_for(arguments[0].device) == "reference":
        _check(*arguments)
        return reference.deform_conv2d(*arguments).contiguous(memory_format=_layout(arguments[0]))
    return _Forward.apply(*arguments)  # type: ignore[no-any-return]


def _autograd_backward(*arguments: Any) -> Gradients:
    if _transformed(arguments[:5]) or backend_for(arguments[0].device) == "reference":
        _check_backward(arguments[0], arguments[1:-1])
        return _reference_backward(*arguments)
    return _Backward.apply(*arguments)  # type: ignore[no-any-return]


def _autocast(device: str) -> Callable[..., Tensor]:
    """Features run in autocast's dtype, as in torch's own convolution; float32 positions and masks stay float32."""
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    def run(input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, *numbers: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(key):
            result: Tensor = torch.ops.torchdcn.deform_conv2d(
                cast(input, dtype), offset, mask, cast(weight, dtype), *numbers
            )
        return result

    return run


for _key in ("CPU", "CompositeExplicitAutograd"):
    library.impl("deform_conv2d", _forward, _key)
    library.impl("deform_conv2d_backward", _backward, _key)
library.impl("deform_conv2d", _fake, "Meta")
library.impl("deform_conv2d_backward", _fake_backward, "Meta")
library.impl("deform_conv2d", _autograd_forward, "Autograd")
library.impl("deform_conv2d_backward", _autograd_backward, "Autograd")
for _device in ("cpu", "cuda"):
    library.impl("deform_conv2d", _autocast(_device), f"Autocast{_device.upper()}")
