"""From a module to an ONNX graph of standard operators, by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops.backends import library, using

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

OPSET = 19
"""The first with a DeformConv that runtimes run: the same node in a file of opset 18 is not valid."""

# Non-maximum suppression as ONNX has it: for each of B sets of boxes by itself, and only of scores >= 0. Returned are
# (set, row) of what is kept, set by set, best first. It exists for tracing, and to run a traced module beside its file.
library.define("_nms_by_set(Tensor boxes, Tensor scores, float iou_threshold, SymInt limit) -> Tensor")


def _nms_by_set(
    boxes: Tensor,  # [B, R, 4]
    scores: Tensor,  # [B, R]
    iou_threshold: float,
    limit: int,  # of each set
) -> Tensor:  # [kept, 2]
    from torchvision.ops import nms

    kept = []
    for i in range(len(boxes)):
        rows = torch.where(scores[i] >= 0)[0]
        rows = rows[nms(boxes[i, rows], scores[i, rows], iou_threshold)[:limit]]
        kept.append(torch.stack([torch.full_like(rows, i), rows], dim=1))
    return torch.cat(kept)


def _nms_by_set_fake(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:  # noqa: ARG001
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)


library.impl("_nms_by_set", _nms_by_set, "CompositeExplicitAutograd")
torch.library.register_fake("torchdcn::_nms_by_set", _nms_by_set_fake, lib=library)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How ONNX says what our operators do: for torch's ``custom_translation_table``."""
    import torchvision  # noqa: F401  # registers roi_align
    from onnxscript import opset19

    op: Any = opset19  # its annotations want ONNX's own types, which are not what its functions return here

    def deform_conv2d(
        input: Any, offset: Any, mask: Any, weight: Any, stride: Any, padding: Any, dilation: Any,
        groups: int, deform_groups: int,
    ) -> Any:  # fmt: skip
        return op.DeformConv(
            input, weight, offset, None, mask,
            kernel_shape=[int(n) for n in weight.shape[2:]], strides=list(stride), pads=[*padding, *padding],
            dilations=list(dilation), group=groups, offset_group=deform_groups,
        )  # fmt: skip

    def nms_by_set(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[-0.5]),  # NonMaxSuppression wants more than its threshold; 0 shall pass
        )  # [kept, 3]: set, class (of one), row
        return op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)

    def roi_align(
        input: Any, boxes: Any, spatial_scale: float, pooled_height: int, pooled_width: int,
        sampling_ratio: int = -1, aligned: bool = False,
    ) -> Any:  # fmt: skip
        images = op.Cast(op.Gather(boxes, op.Constant(value_int=0), axis=1), to=7)  # int64
        corners = op.Gather(boxes, op.Constant(value_ints=[1, 2, 3, 4]), axis=1)
        return op.RoiAlign(
            input, corners, images, spatial_scale=spatial_scale, output_height=pooled_height, output_width=pooled_width,
            sampling_ratio=max(0, sampling_ratio), mode="avg",
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )  # fmt: skip

    return {
        torch.ops.torchdcn.deform_conv2d.default: deform_conv2d,
        torch.ops.torchdcn._nms_by_set.default: nms_by_set,
        torch.ops.torchvision.roi_align.default: roi_align,
    }


def trace(
    module: nn.Module,  # on the CPU, in eval mode
    example: tuple[Tensor, ...],
    dynamic: tuple[dict[int, Any], ...] | None,  # for each tensor, the dimensions that vary
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Any:  # onnx.ModelProto
    """The module as an ONNX model whose nodes carry no traces of this machine.

    Raises:
        RuntimeError: torch can't export the module; the message has its first line.
    """
    from onnx import ModelProto

    # Only the kernels' backend leaves the operator whole; the reference would dissolve into its parts. None runs.
    with _silence(), using("cpp"), torch.no_grad():
        try:
            program = torch.export.export(
                module, example, dynamic_shapes=dynamic, strict=False, prefer_deferred_runtime_asserts_over_guards=True
            )
            exported: Any = torch.onnx.export(
                program, (), None, dynamo=True, opset_version=OPSET, custom_translation_table=translation_table(),
                input_names=list(inputs), output_names=list(outputs), verbose=False,
            )  # fmt: skip
        except Exception as error:  # of a dozen kinds, many of them private to torch
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            advice = "; dynamic=False may help" if dynamic else ""
            raise RuntimeError(
                f"model_or_module: torch could not export {type(module).__name__}: {reason}{advice}"
            ) from error
        model = ModelProto.FromString(exported.model_proto.SerializeToString())
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the exporter's words, some of them pages long, from the user."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
