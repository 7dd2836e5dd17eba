"""Calls while ``torch.fx`` traces a network: tensors are proxies then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.fx import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.fx.proxy import TracerBase


def tracer_of(values: Iterable[Any]) -> TracerBase | None:
    """The tracer of the first proxy among arguments, also in a list of boxes; None for a call with tensors."""
    for value in values:
        if isinstance(value, Proxy):
            return value.tracer
        if isinstance(value, (list, tuple)) and (tracer := tracer_of(value)) is not None:
            return tracer
    return None


def record_call(function: Callable[..., Any], *arguments: Any) -> Proxy | None:
    """Records a call with a proxy among its arguments as one ``call_function`` node; None for a call with tensors."""
    tracer = tracer_of(arguments)
    return None if tracer is None else tracer.create_proxy("call_function", function, arguments, {})
