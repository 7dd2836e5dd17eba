"""Which implementation of an operator answers in which situation.

====================================================  =========================================  =======================
situation                                             what answers                               method
====================================================  =========================================  =======================
a call without gradients                              the kernel of the device's backend         _compute
a call with gradients, and their first derivatives    the kernel, then the gradient kernel of    _Forward
                                                      the same backend                           _compute_gradients
derivatives of gradients (create_graph)               the reference, which torch differentiates  _Backward
forward mode: dual tensors                            the reference                              _answer_by_reference
torch.func: grad, vjp, jvp, vmap, functionalize       the reference, in front of the transform   _answer_under_transform
torch.compile, export, make_fx, fake tensors          a shape: one step of the graph             _infer
the same where the backend is the reference           the reference: its own steps are recorded  _answer_by_reference
the meta device                                       the reference, on tensors without values   _compute
autocast                                              as above, with the features cast           _autocast
a dispatch mode, or a subclass of Tensor              that first, then as above                  _compute_below_autograd
====================================================  =========================================  =======================

Kernels give values and first derivatives only. Everything beyond must be sent to the reference, situation by situation:
left to itself, torch.library answers a jvp with zeros and a second derivative with a wrong number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._torch_private import (
    TRANSFORM_KEY,
    below_autograd,
    excluding,
    has_tangent,
    is_traced,
    modes_active,
    without_autocast,
)
from .backends import backend_for, library, using
from .strides import dense, empty_in_layout, layout, with_fresh_strides

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Kernel = Callable[..., None]

AUTOCAST_DEVICES = ("cpu", "cuda")
PLAIN = (Tensor, torch.nn.Parameter)  # classes that override nothing


class KernelOperator:
    """An operator ``torchdcn::name(tensors..., numbers...) -> Tensor`` with kernels for its value and its gradients.

    ``register()`` defines the operator and ``name_backward``, which takes grad_output, the operator's arguments and
    ``bool[] output_mask``, and returns a gradient for each differentiable argument: an empty tensor where it isn't
    wanted or the argument is None. The output has the dtype and device of the first argument.

    Kernels write to tensors that Python allocates: the forward one takes the operator's arguments and the output, the
    backward one grad_output, the operator's arguments, and a gradient or None for each differentiable argument. All
    tensors that they see are dense, in either layout.

    Args:
        name: In the namespace ``torchdcn``.
        arguments: The schema's, as in ``"Tensor input, Tensor? mask, SymInt[2] stride"``; tensors come first.
        differentiable: The arguments that have a gradient, two or more.
        check: Raises what is wrong with the arguments, or returns the output's shape.
        reference: The definition in plain PyTorch, with the operator's arguments.
        features: The arguments that autocast casts; positions and masks need their digits.
        contiguous: The arguments whose kernels know no channels-last layout.
        layout_of: The 4-D argument whose layout a 4-D output takes; None for a contiguous output of any rank.
        bounded: The reference in bounded memory, as a pair of kernels; without it memory is not bounded.
        cpp: Whether csrc has kernels ``_name_cpp`` and ``_name_backward_cpp`` for it; their schemas are defined here.
        triton: Imports the pair of CUDA kernels.
        traceable: Whether a graph can record the reference's steps for these arguments.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        *,
        differentiable: Sequence[str],
        check: Callable[..., tuple[int, ...]],
        reference: Callable[..., Tensor],
        features: Sequence[str] = (),
        contiguous: Sequence[str] = (),
        layout_of: str | None = None,
        bounded: tuple[Kernel, Kernel] | None = None,
        cpp: bool = False,
        triton: Callable[[], tuple[Kernel, Kernel]] | None = None,
        traceable: Callable[..., bool] = lambda *_: True,
    ) -> None:
        self.name, self.arguments = name, arguments
        self.check, self.reference, self.traceable = check, reference, traceable
        types, self.argument_names = zip(*(argument.rsplit(" ", 1) for argument in arguments.split(", ")), strict=True)
        self.tensors = sum(kind.startswith("Tensor") for kind in types)  # so many leading arguments
        if not all(kind.startswith("Tensor") for kind in types[: self.tensors]):
            raise ValueError(f"{name}: expected tensors before numbers, got {arguments!r}")
        if len(differentiable) < 2:  # with one gradient, torch's schema would return a bare tensor
            raise ValueError(f"{name}: expected two or more differentiable arguments, got {list(differentiable)}")
        self.differentiable = self._positions(differentiable)
        self.features, self.contiguous = self._positions(features), self._positions(contiguous)
        self.layout_of = None if layout_of is None else self._positions([layout_of])[0]
        self.bounded, self.has_cpp, self.triton = bounded or (self._write_output, self._write_gradients), cpp, triton
        self.backends = ("reference", *(["cpp"] if cpp else []), *(["triton"] if triton else []))

    def _positions(self, names: Sequence[str]) -> tuple[int, ...]:
        for name in names:
            if name not in self.argument_names[: self.tensors]:
                raise ValueError(f"{self.name}: expected the name of a tensor in {self.arguments!r}, got {name!r}")
        return tuple(map(self.argument_names.index, names))

    def register(self) -> KernelOperator:
        """Defines the schemas and gives them their implementations, on all devices and under all transforms."""
        self._define()
        implementations: dict[str, tuple[Any, Any]] = {
            "CPU": (self._compute, self._compute_gradients),
            "CompositeExplicitAutograd": (self._compute, self._compute_gradients),
            "Meta": (self._infer, self._infer_gradients),
            "Autograd": (self._record, self._record_gradients),
            # In front of functorch, whose own way would lead through the kernels, past its levels of derivatives.
            TRANSFORM_KEY: (self._answer_under_transform, self._differentiate_reference),
        }
        for key, (value, gradients) in implementations.items():
            library.impl(self.name, value, key)
            library.impl(f"{self.name}_backward", gradients, key)
        for device in AUTOCAST_DEVICES:
            library.impl(self.name, self._autocast(f"Autocast{device.upper()}"), f"Autocast{device.upper()}")
        return self

    def _define(self) -> None:
        """Defines the schemas, and looks the operators up once: by name it would cost more than a small check."""
        name, arguments, count, ops = self.name, self.arguments, len(self.differentiable), torch.ops.torchdcn
        returned = ", ".join(["Tensor"] * count)
        library.define(f"{name}({arguments}) -> Tensor")
        library.define(f"{name}_backward(Tensor grad_output, {arguments}, bool[{count}] output_mask) -> ({returned})")
        self.overload: Callable[..., Tensor] = getattr(ops, name).default
        self.backward_overload: Callable[..., Any] = getattr(ops, f"{name}_backward").default
        if self.has_cpp:
            letters = zip("abcdefghij", self.differentiable, strict=False)  # a schema marks written tensors so
            written = (f"Tensor({letter}!)? grad_{self.argument_names[i]}" for letter, i in letters)
            library.define(f"_{name}_cpp({arguments}, Tensor(a!) output) -> ()")
            library.define(f"_{name}_backward_cpp(Tensor grad_output, {arguments}, {', '.join(written)}) -> ()")
            # Nothing answers to these two before the extension is loaded.
            self.cpp = getattr(ops, f"_{name}_cpp").default, getattr(ops, f"_{name}_backward_cpp").default

    def backend_for(self, device: torch.device) -> str:
        """The backend that serves tensors of a device."""
        return backend_for(device, self.backends)

    def kernels(self, backend: str) -> tuple[Kernel, Kernel]:
        """A backend's kernels, forward and backward."""
        if backend == "triton" and self.triton is not None:
            return self.triton()
        return self.cpp if backend == "cpp" else self.bounded

    def _compute(self, *arguments: Any) -> Tensor:
        backend = backend_for(arguments[0].device, self.backends)
        output = self._infer(*arguments)
        self._run(backend, 0, *self._prepare(backend, arguments), output)
        return output

    def _compute_gradients(self, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        backend = self.backend_for(arguments[0].device)
        *forward_arguments, output_mask = arguments
        selected = self._check_backward(grad_output, forward_arguments, output_mask)
        gradients = _empty_gradients(grad_output, selected)
        written: list[Tensor | None] = [
            None if argument is None else gradient.contiguous() if i in self.contiguous else gradient
            for i, argument, gradient in zip(self.differentiable, selected, gradients, strict=True)
        ]
        self._run(backend, 1, dense(grad_output), *self._prepare(backend, forward_arguments), *written)
        for gradient, result in zip(gradients, written, strict=True):
            if result is not None and result is not gradient:  # contiguous() had to make another
                gradient.copy_(result)
        return gradients

    def _run(self, backend: str, direction: int, *arguments: Any) -> None:
        kernel = self.kernels(backend)[direction]
        if backend == "reference":
            with without_autocast():  # the reference is made of torch's operators, which autocast would cast
                kernel(*arguments)
        else:
            kernel(*arguments)

    def _prepare(self, backend: str, arguments: Sequence[Any]) -> Sequence[Any]:
        """The arguments as a backend's kernels read them: dense, but for the reference, which reads any strides."""
        if backend == "reference":
            return arguments
        tensors = [
            t if t is None else t.contiguous() if i in self.contiguous else dense(t)
            for i, t in enumerate(arguments[: self.tensors])
        ]
        return [*tensors, *arguments[self.tensors :]]

    def _infer(self, *arguments: Any) -> Tensor:
        return empty_in_layout(self.check(*arguments), arguments[0], self._output_layout(arguments))

    def _infer_gradients(self, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *forward_arguments, output_mask = arguments
        return _empty_gradients(grad_output, self._check_backward(grad_output, forward_arguments, output_mask))

    def _output_layout(self, arguments: Sequence[Any]) -> torch.memory_format:
        return torch.contiguous_format if self.layout_of is None else layout(arguments[self.layout_of])

    def _check_backward(
        self, grad_output: Tensor, arguments: Sequence[Any], mask: Sequence[bool]
    ) -> list[Tensor | None]:
        """Returns the differentiable arguments whose gradients are wanted, None in the places of the others."""
        shape, input = self.check(*arguments), arguments[0]
        if tuple(grad_output.shape) != shape:
            raise ValueError(f"grad_output: expected shape {list(shape)}, got {list(grad_output.shape)}")
        if grad_output.device != input.device:
            raise RuntimeError(f"grad_output: expected device {input.device} as input's, got {grad_output.device}")
        if grad_output.dtype != input.dtype:
            raise TypeError(f"grad_output: expected input's {input.dtype}, got {grad_output.dtype}")
        if len(mask) != len(self.differentiable):
            raise ValueError(f"output_mask: expected {len(self.differentiable)} entries, got {len(mask)}")
        return [arguments[i] if wanted else None for i, wanted in zip(self.differentiable, mask, strict=True)]

    # The reference

    def _answer_by_reference(self, *arguments: Any) -> Tensor:
        self.check(*arguments)
        with without_autocast():
            return with_fresh_strides(self.reference(*arguments), self._output_layout(arguments))

    def _answer_under_transform(self, *arguments: Any) -> Tensor:
        return self._answer_by_reference(*self._cast_features(arguments))  # autocast comes after transforms

    def _differentiate_reference(self, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """The gradients as the reference's own derivative, which can be differentiated again."""
        *forward_arguments, output_mask = arguments
        selected = self._check_backward(grad_output, forward_arguments, output_mask)
        places = [i for i, argument in zip(self.differentiable, selected, strict=True) if argument is not None]
        found = self._pull_back(grad_output, forward_arguments, places)
        return tuple(
            grad_output.new_empty(0) if argument is None else with_fresh_strides(found[i], layout(argument))
            for i, argument in zip(self.differentiable, selected, strict=True)
        )

    def _pull_back(self, grad_output: Tensor, arguments: Sequence[Any], places: Sequence[int]) -> dict[int, Tensor]:
        """The reference's gradients by the arguments in some places."""
        if not places:
            return {}
        with without_autocast():
            function = _function_of(self.reference, arguments, places)
            found = torch.func.vjp(function, *(arguments[i] for i in places))[1](grad_output)
        return dict(zip(places, found, strict=True))

    def _write_output(self, *arguments: Any) -> None:
        arguments[-1].copy_(self.reference(*arguments[:-1]))

    def _write_gradients(self, grad_output: Tensor, *arguments: Any) -> None:
        count = len(self.argument_names)
        gradients = dict(zip(self.differentiable, arguments[count:], strict=True))
        places = [i for i, gradient in gradients.items() if gradient is not None]
        for i, found in self._pull_back(grad_output, arguments[:count], places).items():
            gradients[i].copy_(found)

    # Autograd

    def _record(self, *arguments: Any) -> Tensor:
        tensors = arguments[: self.tensors]
        if has_tangent(tensors) or self._records_reference(arguments):
            return self._answer_by_reference(*arguments)
        if _needs_gradient(tensors):
            return _Forward.apply(self, *arguments)  # type: ignore[no-any-return]
        return self._compute_below_autograd(*arguments)

    def _record_gradients(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors = arguments[: 1 + self.tensors]
        if has_tangent(tensors) or self._records_reference(arguments[1:-1]):
            return self._differentiate_reference(*arguments)
        if _needs_gradient(tensors):
            return _Backward.apply(self, *arguments)  # type: ignore[no-any-return]
        return self._compute_gradients_below_autograd(*arguments)

    def _compute_below_autograd(self, *arguments: Any) -> Tensor:
        if _meets_nothing(arguments[: self.tensors]) or self._runs_reference(arguments[0]):
            return self._compute(*arguments)
        with below_autograd():
            return self.overload(*arguments)

    def _compute_gradients_below_autograd(self, *arguments: Any) -> tuple[Tensor, ...]:
        if _meets_nothing(arguments[: 1 + self.tensors]) or self._runs_reference(arguments[1]):
            return self._compute_gradients(*arguments)
        with below_autograd():
            return tuple(self.backward_overload(*arguments))

    def _records_reference(self, arguments: Sequence[Any]) -> bool:
        """Whether a graph records the reference's own steps, which torch then differentiates."""
        input = arguments[0]
        return self.backend_for(input.device) == "reference" and is_traced(input) and self.traceable(*arguments)

    def _runs_reference(self, input: Tensor) -> bool:
        return self.backend_for(input.device) == "reference" and not is_traced(input)

    # Autocast: the rule of torch's own convolution for the features.

    def _autocast(self, key: str) -> Callable[..., Tensor]:
        without_key = excluding(key)

        def cast_and_call(*arguments: Any) -> Tensor:
            arguments = tuple(self._cast_features(arguments))
            with without_key():
                return self.overload(*arguments)

        return cast_and_call

    def _cast_features(self, arguments: Sequence[Any]) -> Sequence[Any]:
        device = arguments[0].device.type
        if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
            return arguments
        dtype = torch.get_autocast_dtype(device)
        return [_cast(a, dtype, device) if i in self.features else a for i, a in enumerate(arguments)]


class _Forward(torch.autograd.Function):
    """Runs the operator and remembers which backend did, so that the same one runs backward."""

    @staticmethod
    def forward(ctx: Any, operator: KernelOperator, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[: operator.tensors])
        ctx.operator, ctx.numbers = operator, arguments[operator.tensors :]
        ctx.backend = operator.backend_for(arguments[0].device)
        return operator._compute_below_autograd(*arguments)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        operator: KernelOperator = ctx.operator
        wanted = [ctx.needs_input_grad[1 + i] for i in operator.differentiable]
        with using(ctx.backend):
            found = operator.backward_overload(grad_output, *ctx.saved_tensors, *ctx.numbers, wanted)
        gradients: list[Tensor | None] = [None] * (1 + operator.tensors + len(ctx.numbers))
        for i, is_wanted, gradient in zip(operator.differentiable, wanted, found, strict=True):
            gradients[1 + i] = gradient if is_wanted else None
        return tuple(gradients)


class _Backward(torch.autograd.Function):
    """Runs the backward operator; its own derivative is taken through the reference."""

    @staticmethod
    def forward(ctx: Any, operator: KernelOperator, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*arguments[: 1 + operator.tensors])
        ctx.operator, ctx.numbers = operator, arguments[1 + operator.tensors :]
        return operator._compute_gradients_below_autograd(*arguments)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        operator: KernelOperator = ctx.operator
        arguments = [*ctx.saved_tensors, *ctx.numbers]
        places = [i for i in range(1 + operator.tensors) if ctx.needs_input_grad[1 + i]]
        with without_autocast():
            function = _function_of(operator._differentiate_reference, arguments, places)
            found = torch.func.vjp(function, *(arguments[i] for i in places))[1](cotangents)
        gradients: list[Tensor | None] = [None] * (1 + len(arguments))
        for i, gradient in zip(places, found, strict=True):
            gradients[1 + i] = gradient
        return tuple(gradients)


def _empty_gradients(grad_output: Tensor, selected: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """A gradient to write, in its argument's layout, where one is selected; else an empty tensor."""
    return tuple(grad_output.new_empty(0) if t is None else empty_in_layout(t.shape, t, layout(t)) for t in selected)


def _function_of(function: Callable[..., Any], arguments: Sequence[Any], places: Sequence[int]) -> Callable[..., Any]:
    """The function of the arguments in some places alone; the others stay as they are."""

    def call(*varied: Tensor) -> Any:
        replaced = dict(zip(places, varied, strict=True))
        return function(*(replaced.get(i, argument) for i, argument in enumerate(arguments)))

    return call


def _meets_nothing(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the dispatcher would find nothing between autograd and the CPU; asking it again costs 10 microseconds."""
    if modes_active():
        return False
    for t in tensors:  # noqa: SIM110  # a generator costs a microsecond
        if t is not None and (type(t) not in PLAIN or not t.is_cpu):
            return False
    return True


def _needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _cast(tensor: Tensor | None, dtype: torch.dtype, device: str) -> Tensor | None:
    if tensor is None or tensor.device.type != device or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
