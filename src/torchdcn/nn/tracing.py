"""How deformable layers appear in a graph that ``torch.fx`` traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import Proxy, Tracer

from ..ops.tracing import tracer_of

if TYPE_CHECKING:
    from torch.fx.proxy import TracerBase


class LeafModule(nn.Module):
    """A module that is one ``call_module`` node in every traced graph, as the layers of ``torch.nn`` are.

    A tracer decides by a module's Python package whether it is a leaf, and users rarely can pass another rule through
    the tool that traces. So the module itself answers a call with a :class:`torch.fx.Proxy`: it enters the tracer as
    any module does, and where the tracer would descend into it, it records the call instead. What happens inside
    (hooks, a ``forward`` of a subclass, computed weights) then happens when the graph runs, once.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, or records the call where an argument is a :class:`torch.fx.Proxy`."""
        tracer = tracer_of(args)
        if tracer is None and kwargs:
            tracer = tracer_of(kwargs.values())
        return super().__call__(*args, **kwargs) if tracer is None else self._record(tracer, args, kwargs)

    def _record(self, tracer: TracerBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(tracer, Tracer):
            raise TypeError(
                f"{type(self).__name__}: expected a tensor, got a torch.fx.Proxy outside of a trace; "
                "add the layer to a graph with graph.call_module(path, args)"
            )

        def record(*args: Any, **kwargs: Any) -> Any:
            if tracer_of(args) is None and tracer_of(kwargs.values()) is None:
                return self.forward(*args, **kwargs)  # for a tracer that computes shapes, with real tensors
            return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)

        # Through the tracer, which keeps account of the module it is in: node names are made from that.
        return tracer.call_module(self, record, args, kwargs)


def refuse_proxy(layer: nn.Module, input: Any) -> None:
    """Raises TypeError where a layer's own ``forward`` is traced: there is no path by which a graph could call it."""
    if isinstance(input, Proxy):
        raise TypeError(
            f"{type(layer).__name__}: torch.fx traces a deformable layer only as a part of a network: trace a module "
            "that has it as a child and calls it (not its forward)"
        )
