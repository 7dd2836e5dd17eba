"""Who runs in a benchmark of deformable convolution, and on what: shapes, and the calls that are timed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops import deform_conv2d

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

OURS, DENSE, TORCHVISION, ONNXRUNTIME = "torchdcn", "dense", "torchvision", "onnxruntime"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Shape:
    """A convolution of ``channels`` to ``channels`` on ``[batch, channels, height, width]``, padded to keep its size.

    Raises:
        ValueError: A number that doesn't fit; the message names the field.

    Example:
        >>> from torchdcn.bench.contenders import Shape
        >>> str(Shape(256, 50, 84, deform_groups=4)), Shape(256, 50, 84, stride=(2, 2)).output_size
        ('256 @ 50x84, 4 deform groups', (25, 42))
    """

    channels: int
    height: int
    width: int
    batch: int = 1
    deform_groups: int = 1
    groups: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width", "batch", "deform_groups", "groups", "kernel", "stride", "dilation"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("groups", "deform_groups"):
            if self.channels % getattr(self, name):
                raise ValueError(
                    f"{name}: expected a divisor of the {self.channels} channels, got {getattr(self, name)}"
                )
        if min(self.output_size) < 1:
            raise ValueError(f"kernel: {self._kernel} leaves nothing of a map of {self.height}x{self.width}")

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side: half of the window."""
        return tuple(d * (k - 1) // 2 for k, d in zip(self.kernel, self.dilation, strict=True))  # type: ignore[return-value]  # two in, two out

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        numbers = zip((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers)  # type: ignore[return-value]  # likewise

    @property
    def _kernel(self) -> str:
        return "x".join(map(str, self.kernel))

    def __str__(self) -> str:
        parts = [f"{self.batch} x " * (self.batch > 1) + f"{self.channels} @ {self.height}x{self.width}"]
        if self.kernel != (3, 3):
            parts.append(self._kernel)
        steps = {"stride": self.stride, "dilation": self.dilation}
        parts += [f"{name} {y if y == x else (y, x)}" for name, (y, x) in steps.items() if (y, x) != (1, 1)]
        if self.groups > 1:
            parts.append("depthwise" if self.groups == self.channels else f"{self.groups} groups")
        if self.deform_groups > 1:
            parts.append(f"{self.deform_groups} deform groups")
        return ", ".join(parts)


RESNET50 = (Shape(128, 100, 168), Shape(256, 50, 84), Shape(512, 25, 42))
"""The 3x3 convolutions of c3, c4 and c5 of a ResNet-50 that sees an image of 800 x 1344."""

VARIED = (
    *(Shape(256, 50, 84, deform_groups=count) for count in (1, 2, 4, 8)),
    *(Shape(256, 50, 84, groups=count) for count in (2, 32, 256)),
    *(Shape(256, 50, 84, kernel=kernel) for kernel in ((1, 1), (5, 3), (7, 7))),
    Shape(256, 100, 168, stride=(2, 2)),
    Shape(256, 50, 84, dilation=(2, 2)),
    Shape(3, 200, 336),
    Shape(24, 200, 336),
    Shape(67, 100, 168),
)
"""Away from the usual: groups of both kinds, other windows, channels that fill no whole number of vectors."""

SCALING = (*RESNET50, Shape(256, 14, 14, batch=32))
"""One image with large maps, and many with small ones: both should keep all threads busy."""


@dataclass(frozen=True)
class Lineup:
    """The calls that take part, by name, and why others don't."""

    calls: dict[str, Callable[[], Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def operator_contenders(
    shape: Shape,
    training: bool,
    dtype: torch.dtype = torch.float32,
    peers: bool = True,
    device: torch.device | str = "cpu",
    names: Collection[str] | None = None,
) -> Lineup:
    """Calls of the dense convolution, of ours and of its peers', each on tensors of its own.

    Args:
        shape: What to convolve.
        training: Forward and backward (input, offset, mask, weight) instead of forward alone. A call returns the
            gradients then, else the output.
        dtype: Of the features, offsets, masks and weights; offsets are drawn from N(0, 2) pixels. Beside 16-bit dtypes
            ours runs in float32 too.
        peers: Whether to include torchvision's operator, which may take seconds, and onnxruntime's, which has no
            backward and runs on the CPU with as many threads as torch.
        device: Where to run.
        names: Only these; nothing is made for the others.

    Example:
        >>> from torchdcn.bench.contenders import Shape, operator_contenders
        >>> lineup = operator_contenders(Shape(8, 5, 6), training=False, names=["torchdcn, channels-last"])
        >>> {name: call().shape for name, call in lineup.calls.items()}
        {'torchdcn, channels-last': torch.Size([1, 8, 5, 6])}
    """
    tensors = _draw(shape, dtype, torch.device(device))
    lineup = Lineup()

    def enter(name: str, function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> None:
        if names is None or name in names:
            lineup.calls[name] = _call(shape, function, tensors, training)

    for layout in LAYOUTS:
        enter(f"{DENSE}, {layout}", _dense(shape), _laid_out((tensors[0], tensors[3]), layout))
    for layout in LAYOUTS:
        enter(f"{OURS}, {layout}", _ours(shape), _laid_out(tensors, layout))
    if dtype in HALVES:
        widened = tuple(tensor.float() for tensor in tensors)
        enter(f"{OURS} in float32, channels-last", _ours(shape), _laid_out(widened, "channels-last"))
    if peers and (names is None or TORCHVISION in names):
        if reason := _torchvision_lacks(dtype, torch.device(device)):
            lineup.absent[TORCHVISION] = reason
        else:
            enter(TORCHVISION, _torchvisions(shape), tensors)
    if peers and not training and (names is None or ONNXRUNTIME in names):
        try:
            lineup.calls[ONNXRUNTIME] = _onnxruntimes(shape, tensors)
        except _AbsentError as error:
            lineup.absent[ONNXRUNTIME] = str(error)
    return lineup


class _AbsentError(Exception):
    """Why a peer can't take part."""


def _draw(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Input, offset, mask and weight."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    taps, fan_in = math.prod(shape.kernel), shape.channels // shape.groups
    input = draw(shape.batch, shape.channels, shape.height, shape.width)
    offset = 2 * draw(shape.batch, 2 * taps * shape.deform_groups, *shape.output_size)
    mask = draw(shape.batch, taps * shape.deform_groups, *shape.output_size).sigmoid()
    weight = draw(shape.channels, fan_in, *shape.kernel) / math.sqrt(fan_in * taps)
    return tuple(tensor.to(device, dtype) for tensor in (input, offset, mask, weight))


def _laid_out(tensors: tuple[Tensor, ...], layout: str) -> tuple[Tensor, ...]:
    """The input in a layout, and so the dense convolution's weight; the rest stays as layers make it."""
    count = 1 if len(tensors) == 4 else 2
    return *(tensor.contiguous(memory_format=LAYOUTS[layout]) for tensor in tensors[:count]), *tensors[count:]


def _dense(shape: Shape) -> Callable[[Tensor, Tensor], Tensor]:
    def dense(input: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(
            input, weight, None, shape.stride, shape.padding, shape.dilation, shape.groups
        )

    return dense


def _ours(shape: Shape) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def ours(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(input, offset, weight, None, shape.stride, shape.padding, shape.dilation, mask)

    return ours


def _torchvisions(shape: Shape) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    from torchvision.ops import deform_conv2d as peer

    def torchvisions(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return peer(input, offset, weight, None, shape.stride, shape.padding, shape.dilation, mask)  # type: ignore[no-any-return]

    return torchvisions


def _torchvision_lacks(dtype: torch.dtype, device: torch.device) -> str:
    tiny = Shape(1, 3, 3)
    try:
        with torch.no_grad():
            _torchvisions(tiny)(*_draw(tiny, dtype, device))
    except RuntimeError:  # NotImplementedError is one
        return f"it has no kernel for {_name(dtype)} on {device.type}"
    return ""


def _call(
    shape: Shape, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], training: bool
) -> Callable[[], Any]:
    if not training:

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    # Its layout is the output's. The function isn't called for it: the memory of a first call is measured, too.
    last = leaves[0].is_contiguous(memory_format=torch.channels_last) and not leaves[0].is_contiguous()
    cotangent = leaves[0].new_ones(shape.batch, shape.channels, *shape.output_size)
    cotangent = cotangent.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def _onnxruntimes(shape: Shape, tensors: tuple[Tensor, ...]) -> Callable[[], Any]:
    """DeformConv in onnxruntime as a model of one node, held against ours before it may run."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise _AbsentError(f"{error.name} is not installed; pip install onnx onnxruntime brings it") from None
    dtype, device = tensors[0].dtype, tensors[0].device
    if device.type != "cpu":
        raise _AbsentError("it is compared on the CPU only")
    if dtype in HALVES:
        raise _AbsentError(f"it has no DeformConv in {_name(dtype)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # an error comes as an exception
    # Its threads would go on spinning after a call, in the time of whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    input, offset, mask, weight = (tensor.numpy() for tensor in tensors)
    feed = {"input": input, "offset": offset, "mask": mask}

    def session() -> Any:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    try:
        model = _onnx_model(onnx, shape, feed, weight).SerializeToString()
        found = torch.from_numpy(session().run(None, feed)[0])
    except Exception as error:  # onnxruntime's exceptions share no base class of its own
        raise _AbsentError(f"it can't run this: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        expected = _ours(shape)(*tensors)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= 1e-3:
        raise _AbsentError(f"its result differs from ours by {difference:.1e} of the largest value")
    fresh = session()  # the other has kept the memory of its run
    return lambda: fresh.run(None, feed)


def _onnx_model(onnx: Any, shape: Shape, feed: dict[str, Any], weight: Any) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    node = onnx.helper.make_node(
        "DeformConv", ["input", "weight", "offset", "", "mask"], ["output"],
        strides=shape.stride, pads=shape.padding * 2, dilations=shape.dilation,
        group=shape.groups, offset_group=shape.deform_groups,
    )  # fmt: skip
    graph = onnx.helper.make_graph(
        [node],
        "deform_conv2d",
        [onnx.helper.make_tensor_value_info(name, kind, array.shape) for name, array in feed.items()],
        [onnx.helper.make_tensor_value_info("output", kind, (shape.batch, shape.channels, *shape.output_size))],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    # The first version that has DeformConv, and the file format of its day: read by every onnxruntime since.
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
