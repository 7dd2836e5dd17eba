"""Records where each sampling layer of a network samples in one forward pass."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import DeformConv2d, DeformConv2dPack, DeformRoIPool, DeformRoIPoolPack
from ..ops import deform_roi_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from .node import ImageMapping, Size

    Pair = tuple[int, int]

CONVOLUTIONS = (DeformConv2d, torchvision.ops.DeformConv2d)
POOLS = (DeformRoIPool, torchvision.ops.RoIAlign)
Predicted = tuple[Tensor, Tensor | None]


@dataclass(eq=False)
class ConvCall:
    """One use of a deformable convolution: for an image, where each tap samples for each output.

    Attributes:
        name: The layer's path.
        kernel: Kernel size, stride, padding and dilation, each as rows, columns.
        input_size: Of the layer's input.
        offset: ``[1, 2 G K, Ho, Wo]``, part of the graph where there is one.
        mask: ``[1, G K, Ho, Wo]`` or None.
    """

    name: str
    kernel: tuple[Pair, Pair, Pair, Pair]
    input_size: Size
    offset: Tensor
    mask: Tensor | None

    @property
    def output_size(self) -> Size:
        """Of the layer's output."""
        return self.offset.shape[2], self.offset.shape[3]

    def offsets(self) -> Tensor:
        """``[G K, 2, Ho, Wo]`` as dy, dx."""
        height, width = self.output_size
        return self.offset.detach().reshape(-1, 2, height, width)

    def weights(self) -> Tensor:
        """``[G K, Ho, Wo]``: the mask, or ones."""
        mask = self.mask
        return torch.ones_like(self.offsets()[:, 0]) if mask is None else mask.detach()[0]

    def taps(self) -> Tensor:
        """``[G K, 2]``: row and column of each tap in the kernel, for every deformable group."""
        rows, columns = (torch.arange(side) for side in self.kernel[0])
        groups = self.offset.shape[1] // (2 * len(rows) * len(columns))
        taps = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
        return taps.repeat(groups, 1).to(self.offset)

    def grid(self) -> Tensor:
        """``[G K, 2, Ho, Wo]``: where the taps would sample without offsets, as rows and columns of the input."""
        _, stride, padding, dilation = (self.offset.new_tensor(pair) for pair in self.kernel)
        height, width = self.output_size
        rows, columns = torch.arange(height).to(self.offset), torch.arange(width).to(self.offset)
        outputs = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        positions: Tensor = (self.taps() * dilation - padding)[:, :, None, None] + outputs * stride[:, None, None]
        return positions

    def points(self, mapping: ImageMapping) -> Tensor:
        """``[G K, Ho, Wo, 2]``: where the taps sample, as x, y in the image."""
        positions = (self.grid() + self.offsets()).permute(0, 2, 3, 1)
        return mapping.pixels(positions * mapping.stride(self.input_size))

    def pixel_gradient(self, gradient: Tensor, mapping: ImageMapping) -> Tensor:
        """The derivative by the offsets as one by :meth:`points`, ``[G K, Ho, Wo, 2]`` as x, y."""
        scale = mapping.scale(gradient) * mapping.stride(self.input_size)
        moves = gradient.reshape(-1, 2, *self.output_size).permute(0, 2, 3, 1)
        return (moves / scale).flip(-1)


@dataclass(eq=False)
class BinCall:
    """One use of RoI pooling: where it puts the bins of K boxes.

    Attributes:
        name: The layer's path.
        boxes: ``[K, 4]`` in the network's input.
        gamma: Scale of the offsets.
        offset: ``[K, 2, ph, pw]`` as x, y, part of the graph where there is one.
        mask: ``[K, 1, ph, pw]`` or None.
    """

    name: str
    boxes: Tensor
    gamma: float
    offset: Tensor
    mask: Tensor | None

    def weights(self) -> Tensor:
        """``[K, ph, pw]``: the modulation, or ones."""
        return torch.ones_like(self.offset[:, 0]) if self.mask is None else self.mask.detach()[:, 0]

    def _sides(self) -> Tensor:
        return (self.boxes[:, 2:] - self.boxes[:, :2])[:, None, None]  # [K, 1, 1, 2]

    def grid(self, mapping: ImageMapping) -> Tensor:
        """``[K, ph, pw, 2]``: the bins' centres where nothing moves them, as x, y in the image."""
        height, width = self.offset.shape[2:]
        rows = (torch.arange(height).to(self.boxes) + 0.5) / height
        columns = (torch.arange(width).to(self.boxes) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres = self.boxes[:, None, None, :2] + torch.stack([x, y], dim=-1) * self._sides()
        # Boxes have the first pixel's corner at 0, points its centre.
        return mapping.pixels(centres.flip(-1) - 0.5)

    def points(self, mapping: ImageMapping) -> Tensor:
        """``[K, ph, pw, 2]``: the bins' centres, as x, y in the image."""
        moved = self.gamma * self._sides() * self.offset.detach().permute(0, 2, 3, 1)
        return self.grid(mapping) + moved * mapping.scale(moved).flip(0)

    def pixel_gradient(self, gradient: Tensor, mapping: ImageMapping) -> Tensor:
        """The derivative by the offsets as one by :meth:`points`, ``[K, ph, pw, 2]`` as x, y."""
        step = self.gamma * self._sides() * mapping.scale(gradient).flip(0)
        moves = gradient.permute(0, 2, 3, 1)
        return torch.where(step == 0, torch.zeros_like(moves), moves / step)  # nothing moves bins where gamma is 0


@dataclass(eq=False)
class RegularCall:
    """One use of an ordinary convolution, whose taps have places as well.

    Attributes:
        name: The layer's path.
        layer: The convolution.
        input: What it was given, ``[1, C, H, W]``.
        output: What it gave, ``[1, Co, Ho, Wo]``, part of the graph.
    """

    name: str
    layer: nn.Conv2d
    input: Tensor
    output: Tensor

    def as_deformable(self, gradient: Tensor) -> tuple[ConvCall, Tensor]:
        """The same convolution as a deformable one without offsets, and the derivative by these, ``[1, 2 K, Ho, Wo]``.

        At whole positions bilinear interpolation has a kink; the derivative is the mean of those on its two sides.

        Args:
            gradient: The response's derivative by the output.
        """
        rows, columns = (_padding(self.layer, axis) for axis in (0, 1))
        # One more pixel on each side: a tap on the padding's edge still has neighbours.
        padded = F.pad(self.input, (columns[0] + 1, columns[1] + 1, rows[0] + 1, rows[1] + 1))
        slopes = (
            (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2,
            (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2,
        )
        layer = self.layer
        kernel = _pair(layer.kernel_size), _pair(layer.stride), (rows[0], columns[0]), _pair(layer.dilation)
        weight = layer.weight.detach().flatten(2).unflatten(0, (layer.groups, -1))  # [g, Co / g, C / g, K]
        upstream = gradient[0].flatten(1).unflatten(0, (layer.groups, -1))  # [g, Co / g, L]
        by_sample = torch.einsum("gol,gock->gckl", upstream, weight)  # the response's derivative by each sample
        moves = []
        for slope in slopes:
            samples = F.unfold(slope, layer.kernel_size, layer.dilation, 0, layer.stride)
            moves.append((by_sample * samples.reshape(by_sample.shape)).sum((0, 1)))  # [K, L]
        moved = torch.stack(moves, dim=1).reshape(1, -1, *self.output.shape[2:])
        size = (self.input.shape[2], self.input.shape[3])
        return ConvCall(self.name, kernel, size, torch.zeros_like(moved), None), moved


def _pair(value: Any) -> Pair:
    return int(value[0]), int(value[1])


def _padding(layer: nn.Conv2d, axis: int) -> Pair:
    """Zeros before and after."""
    if layer.padding == "same":
        total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    amount = 0 if isinstance(layer.padding, str) else int(layer.padding[axis])
    return amount, amount


def kinds_of_layers(model: nn.Module) -> dict[str, str]:
    """The layers of a model that sample, by path: "deformable", "bins" (of RoI pooling, moved or not) or "regular"."""
    kinds = {}
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            kinds[name] = "deformable"
        elif isinstance(module, POOLS):
            kinds[name] = "bins"
        elif isinstance(module, nn.Conv2d):
            kinds[name] = "regular"
    for name, module in model.named_modules():
        if isinstance(module, DeformConv2dPack):  # the convolution that predicts offsets is a part of the pack
            kinds.pop(f"{name}.conv_offset" if name else "conv_offset", None)
    return kinds


@dataclass
class Recorder:
    """Collects the uses of a model's sampling layers while :meth:`watching` it, in order.

    Attributes:
        chosen: Paths of the layers to record.
        calls: What was recorded.
    """

    chosen: Collection[str]
    calls: list[ConvCall | BinCall | RegularCall] = field(default_factory=list)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Puts hooks on all chosen layers, and removes them afterwards."""
        with ExitStack() as undo:
            for name, module in model.named_modules():
                if name in self.chosen:
                    self._watch(name, module, undo)
            yield

    def _watch(self, name: str, module: nn.Module, undo: ExitStack) -> None:
        hooks: list[Any] = []
        if isinstance(module, DeformConv2dPack):
            undo.enter_context(_predictions(module, _pack(self, name, module)))
        elif isinstance(module, DeformRoIPoolPack):
            boxes: list[Tensor] = []
            hooks.append(module.register_forward_pre_hook(lambda _, given: boxes.append(_boxes(given[1]))))
            undo.enter_context(_predictions(module, _pool_pack(self, name, module, boxes)))
        elif isinstance(module, CONVOLUTIONS):
            hooks.append(module.register_forward_pre_hook(_offsets_given(self, name), with_kwargs=True))
        elif isinstance(module, DeformRoIPool):
            hooks.append(module.register_forward_pre_hook(_bins_given(self, name), with_kwargs=True))
        elif isinstance(module, torchvision.ops.RoIAlign):
            hooks.append(module.register_forward_hook(_aligned(self, name)))
        elif isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(_regular(self, name)))
        for hook in hooks:
            undo.callback(hook.remove)


@contextmanager
def _predictions(pack: nn.Module, record: Callable[[Tensor, Predicted], Predicted]) -> Iterator[None]:
    """Passes what a pack predicts through ``record``."""
    own = vars(pack).get("predict")
    predict = cast("Callable[[Tensor], Predicted]", pack.predict)
    vars(pack)["predict"] = lambda given: record(given, predict(given))
    try:
        yield
    finally:
        if own is None:
            del vars(pack)["predict"]
        else:
            vars(pack)["predict"] = own


def _leaf(offset: Tensor) -> Tensor:
    """Offsets that can be differentiated by: the given ones, or a copy where they are not part of a graph."""
    if offset.requires_grad or not torch.is_grad_enabled():
        return offset
    return offset.detach().clone().requires_grad_()


def _kernel(layer: Any) -> tuple[Pair, Pair, Pair, Pair]:
    return _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation)


def _pack(recorder: Recorder, name: str, layer: nn.Module) -> Callable[[Tensor, Predicted], Predicted]:
    def record(input: Tensor, predicted: Predicted) -> Predicted:
        offset, mask = _leaf(predicted[0]), predicted[1]
        recorder.calls.append(ConvCall(name, _kernel(layer), (input.shape[2], input.shape[3]), offset, mask))
        return offset, mask

    return record


def _pool_pack(
    recorder: Recorder, name: str, layer: DeformRoIPool, boxes: list[Tensor]
) -> Callable[[Tensor, Predicted], Predicted]:
    def record(_: Tensor, predicted: Predicted) -> Predicted:
        offset, mask = _leaf(predicted[0]), predicted[1]
        if len(offset):
            recorder.calls.append(BinCall(name, boxes[-1], layer.gamma, offset, mask))
        return offset, mask

    return record


def _boxes(given: Tensor | Sequence[Tensor]) -> Tensor:  # [K, 4]
    return given[:, 1:] if isinstance(given, Tensor) else torch.cat(list(given))


def _offsets_given(recorder: Recorder, name: str) -> Callable[..., Any]:
    def before(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        arguments = dict(zip(("input", "offset", "mask"), given, strict=False)) | named
        arguments["offset"] = _leaf(arguments["offset"])
        height, width = arguments["input"].shape[2:]
        mask = arguments.get("mask")
        recorder.calls.append(ConvCall(name, _kernel(layer), (height, width), arguments["offset"], mask))
        return (arguments.pop("input"), arguments.pop("offset"), *arguments.values()), {}

    return before


def _bins_given(recorder: Recorder, name: str) -> Callable[..., Any]:
    def before(layer: DeformRoIPool, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        arguments = dict(zip(("input", "boxes", "offset", "mask"), given, strict=False)) | named
        boxes, offset = _boxes(arguments["boxes"]), arguments.get("offset")
        if offset is None:
            offset = boxes.new_zeros(len(boxes), 2, *layer.output_size)
        arguments["offset"] = _leaf(offset)
        if len(boxes):
            call = BinCall(name, boxes, layer.gamma, arguments["offset"], arguments.get("mask"))
            recorder.calls.append(call)
        return (), arguments

    return before


def _aligned(recorder: Recorder, name: str) -> Callable[..., Any]:
    def after(layer: torchvision.ops.RoIAlign, given: tuple[Any, ...], output: Tensor) -> Tensor:
        input, boxes = given[:2]
        if not len(output) or not layer.aligned:  # our operator has no bins for the older rule
            return output
        size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
        rows = _boxes(boxes)
        offset = _leaf(rows.new_zeros(len(rows), 2, *size))
        recorder.calls.append(BinCall(name, rows, 1.0, offset, None))
        # RoIAlign is deformable pooling whose bins stay in place: the same output, with a derivative by their places.
        return deform_roi_pool(input, boxes, size, offset, None, layer.spatial_scale, layer.sampling_ratio, gamma=1.0)

    return after


def _regular(recorder: Recorder, name: str) -> Callable[..., Any]:
    def after(layer: nn.Conv2d, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer.padding_mode != "zeros":
            raise ValueError(f"layers: {name!r} pads with {layer.padding_mode!r}; only zeros can be looked into")
        output = _leaf(output)
        # Copies: the layers that follow may change both in place.
        recorder.calls.append(RegularCall(name, layer, given[0].detach().clone(), output))
        return output.clone()

    return after
