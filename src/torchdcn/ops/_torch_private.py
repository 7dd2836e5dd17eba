"""Every private name of torch that the project uses, with its reason and with what would replace it.

torch may rename these without notice, so they stand in one file. Each is looked up once, at import: a name that is gone
raises one error that names it and torch's version. A name that keeps its spelling but changes its meaning fails
``tests/ops/test_torch_private.py``, which ``make wheel-check`` runs on the oldest torch that is supported and on the
current one. That test, rather than a check at import: an import may happen within any mode or transform, where a trial
call answers something else, and it would cost every program a jvp at its start. What is more, forward mode doesn't rest
on one name: `TRANSFORM_KEY` sends torch.func's calls to the reference, and where that fails `has_tangent`, which asks a
public function, finds the tangents.

Not here: ``Module._parameters``, ``_buffers``, ``_modules`` and ``_load_from_state_dict`` in nn/, which torch's own
guide to modules has users read and override, and the dispatch keys that the documentation of ``torch.library`` lists.
"""

from __future__ import annotations

from contextlib import suppress
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from torch import Tensor

REQUIRED: list[str] = []
"""The names that are looked up below, from ``torch`` on."""


for _module in ("torch._guards", "torch._subclasses.fake_tensor"):
    with suppress(ImportError):  # then the name below is missing, and named
        import_module(_module)


def _require(name: str) -> Any:
    REQUIRED.append(name)
    try:
        return reduce(getattr, name.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"torchdcn uses torch.{name}, which torch {torch.__version__} does not have; install another torch, "
            f"2.10 or newer, or a newer torchdcn"
        ) from None


# Which situation a call is in

transforms_active: Callable[[], bool] = _require("_C._are_functorch_transforms_active")
"""Whether a transform of torch.func is running. There is no public question; a level counted by functions that wrap
torch.func's would replace it."""

_require("autograd.forward_ad._current_level")  # read anew at each call, for it changes


def forward_mode_active() -> bool:
    """Whether a level of forward-mode differentiation is open, so that tensors may have tangents.

    Only saves time: every decision on derivatives is made by `has_tangent`. Without it, True is right.
    """
    return forward_ad._current_level >= 0


def has_tangent(tensors: Iterable[Tensor | None]) -> bool:
    """Whether any of the tensors is dual. torch's public function is asked, so no private name can hide a tangent."""
    for t in tensors:  # noqa: SIM110  # a generator costs a microsecond
        if t is not None and forward_ad.unpack_dual(t).tangent is not None:
            return True
    return False


_dispatch_modes: Callable[[], int] = _require("_C._len_torch_dispatch_stack")


def modes_active() -> bool:
    """Whether a TorchDispatchMode (fake tensors, a counter, a tracer) watches operators.

    Lets a plain call skip the dispatcher's second round, 10 microseconds. Without it, True is right, only slower.
    """
    return _dispatch_modes() > 0


_detect_fake_mode: Callable[[Any], Any] = _require("_guards.detect_fake_mode")


def is_traced(tensor: Tensor) -> bool:
    """Whether a graph is being recorded: the tensor is a fake one, or the tracer's mode is on.

    ``torch.compiler.is_compiling()`` is public, but False under ``make_fx`` and a plain FakeTensorMode.
    """
    return _detect_fake_mode((tensor,)) is not None


FakeTensorMode: Any = _require("_subclasses.fake_tensor.FakeTensorMode")
"""Runs a network on tensors with shapes and no values. ``torch.device("meta")`` would replace it, but knows no CPU."""

# How a call goes on

below_autograd: Callable[[], AbstractContextManager[None]] = _require("_C._AutoDispatchBelowAutograd")
"""Within it an operator's implementation below autograd answers. ``torch.library.custom_op`` does that by itself; it
would replace this if it let an operator choose between kernels and a reference that is differentiated again."""

without_autocast: Callable[[], AbstractContextManager[None]] = _require("_C._DisableAutocast")
"""Turns autocast off on all devices. ``torch.autocast(device, enabled=False)`` replaces it, a device at a time."""

_DispatchKey = _require("_C.DispatchKey")
_DispatchKeySet = _require("_C.DispatchKeySet")
_ExcludeDispatchKeyGuard = _require("_C._ExcludeDispatchKeyGuard")

TRANSFORM_KEY: str = _require("_C.DispatchKey.FuncTorchDynamicLayerFrontMode").name
"""The key in front of torch.func's own: an implementation there is asked before a transform takes its arguments apart.
Without it functorch would differentiate the kernels. ``torch.library.register_vmap`` and an ``autograd.Function`` with
setup_context and jvp would replace it, at the cost of rules for each operator and each of its derivatives."""


def excluding(key: str) -> Callable[[], AbstractContextManager[None]]:
    """Makes a context that leaves out a dispatch key: autocast's implementation calls the operator, and not itself.

    ``torch.library.register_autocast`` replaces it where all tensors are cast; ours leaves positions alone.
    """
    keys = _DispatchKeySet(getattr(_DispatchKey, key))
    return lambda: _ExcludeDispatchKeyGuard(keys)


_uncache_dispatch: Callable[[Any, Any], None] = _require("_ops.OpOverload._uncache_dispatch")


def forget_route(overload: Any, key: str) -> None:
    """Makes torch.compile ask again which implementation serves a key of an operator.

    ``Library.impl(..., allow_override=True)`` should do so itself. Once it does, this can go.
    """
    _uncache_dispatch(overload, getattr(_DispatchKey, key))


# Values

_is_wrapped: Callable[[Tensor], bool] = _require("_C._functorch.is_functorch_wrapped_tensor")
_unwrap: Callable[[Tensor], Tensor] = _require("_C._functorch.get_unwrapped")


def without_transforms(tensor: Tensor) -> Tensor:
    """The tensor that torch.func's transforms have wrapped, with all examples of a vmap in it.

    No public way leads to the values of boxes under vmap; a vmap rule for the operator would be given them.
    """
    while _is_wrapped(tensor):
        tensor = _unwrap(tensor)
    return tensor


assert_async: Callable[[Tensor, str], None] = _require("_assert_async")
"""Raises where a tensor is false, on a GPU without waiting for it. ``torch._check_tensor_all`` waits; nothing public
does this."""

BatchNorm: Any = _require("nn.modules.batchnorm._BatchNorm")
"""What all batch normalisations are derived from. A tuple of the public classes replaces it."""
