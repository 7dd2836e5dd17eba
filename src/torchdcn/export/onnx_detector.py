"""A whole detector in operations that ONNX has: batch 1, any height and width.

The picture's own size decides the size that it is resized to, so that part is written in ONNX itself; from the resized
picture on, torch's exporter traces :class:`DetectorGraph`. Both are joined to one graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from .onnx_trace import OPSET, trace

if TYPE_CHECKING:
    from ..models.pooling import MultiScaleRoIPool
    from ..models.rcnn import RCNN

OUTPUTS = ("boxes", "scores", "labels", "masks")


class DetectorGraph(nn.Module):
    """What :class:`~torchdcn.models.rcnn.RCNN` does after resizing, for one image, with no size fixed.

    It is a second way through the same parts because ``len(tensor)`` and loops over boxes, which are right in the
    first, become constants in a graph.

    Args:
        model: The detector, in eval mode.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        batch: Tensor,  # [1, 3, 32 a, 32 b], resized, normalised and padded
        bound: Tensor,  # [4]: width, height, width, height of the resized image
        ratio: Tensor,  # [4]: the image's own size by that
        rows: Tensor,  # [H]: 0, 1, ... of the image itself
        columns: Tensor,  # [W]
    ) -> tuple[Tensor, ...]:
        """``boxes [D, 4]``, ``scores [D]``, ``labels [D]`` and, with a mask head, ``masks [D, 1, H, W]``."""
        maps = list(self.model.backbone(batch).values())
        proposals = self._proposals(batch, maps, bound)
        boxes, scores, labels = self._detections(maps, proposals, bound)
        if not self.model.settings.masks:
            return boxes * ratio, scores, labels
        heads = self.model.roi_heads
        logits = heads.mask_predictor(heads.mask_head(_pool(heads.mask_roi_pool, maps, boxes)))
        masks = logits[torch.arange(labels.shape[0]), labels].sigmoid()
        boxes = boxes * ratio
        return boxes, scores, labels, _paste(masks, boxes, rows, columns)

    def _proposals(self, batch: Tensor, maps: list[Tensor], bound: Tensor) -> Tensor:  # [R, 4]
        rpn, settings = self.model.rpn, self.model.settings
        maps = maps[: len(rpn.anchor_generator.strides)]
        anchors = rpn.anchor_generator(ImageList(batch, [(0, 0)]), maps)[0]
        best, chosen, levels, predicted, start = [], [], [], [], 0
        for level, (logits, deltas) in enumerate(zip(*rpn.head(maps), strict=True)):
            count, height, width = logits.shape[1:]
            total = count * height * width
            top = logits.permute(0, 2, 3, 1).flatten().topk(torch.sym_min(total, settings.rpn_pre_nms_top_n_test))
            best.append(top.values)
            chosen.append(top.indices + start)
            levels.append(torch.full_like(top.indices, level))
            predicted.append(deltas.reshape(count, 4, height, width).permute(2, 3, 0, 1).reshape(total, 4))
            start = start + total
        rows = torch.cat(chosen)
        boxes = _decode(torch.cat(predicted)[rows], anchors[rows], rpn.box_coder, bound)[:, 0]
        scores = torch.cat(best).sigmoid()
        fit = _solid(boxes) & (scores >= settings.rpn_score_thresh)
        of_level = torch.cat(levels) == torch.arange(len(maps))[:, None]  # suppression is within a level
        keep = _nms(
            boxes.expand(len(maps), -1, -1),
            torch.where(of_level & fit, scores, -1.0),
            settings.rpn_nms_thresh,
            settings.rpn_pre_nms_top_n_test,
        )[:, 1]
        order = scores[keep].argsort(descending=True)
        return boxes[keep[order[: settings.rpn_post_nms_top_n_test]]]

    def _detections(
        self, maps: list[Tensor], proposals: Tensor, bound: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # [D, 4], [D], [D]
        heads, settings = self.model.roi_heads, self.model.settings
        scores, deltas = heads.box_predictor(heads.box_head(_pool(heads.box_roi_pool, maps, proposals)))
        boxes = _decode(deltas, proposals, heads.box_coder, bound).transpose(0, 1)  # [C, R, 4]
        scores = scores.softmax(dim=1)[:, 1:].t()
        scores = torch.where(_solid(boxes) & (scores > heads.score_thresh), scores, -1.0)
        keep = _nms(boxes, scores, heads.nms_thresh, settings.rpn_post_nms_top_n_test)
        labels, rows = keep.unbind(1)
        boxes, scores = boxes[labels, rows], scores[labels, rows]
        order = scores.argsort(descending=True)[: heads.detections_per_img]
        return boxes[order], scores[order], labels[order]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    kept: Tensor = torch.ops.torchdcn._nms_by_set(boxes, scores, iou_threshold, limit)
    return kept


def _solid(boxes: Tensor) -> Tensor:  # [..., 4] -> [...]
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _decode(
    deltas: Tensor,  # [R, 4 C]
    boxes: Tensor,  # [R, 4]
    coder: Any,
    bound: Tensor,  # [4]
) -> Tensor:  # [R, C, 4]
    """``BoxCoder.decode_single``, clipped to the image."""
    deltas = deltas.unflatten(1, (deltas.shape[1] // 4, 4)) / deltas.new_tensor(coder.weights)
    sizes = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centres = (boxes[:, 2:] + boxes[:, :2])[:, None] / 2 + deltas[..., :2] * sizes
    half = sizes * deltas[..., 2:].clamp(-coder.bbox_xform_clip, coder.bbox_xform_clip).exp() / 2
    return torch.minimum(torch.cat([centres - half, centres + half], dim=-1).clamp(min=0), bound)


def _pool(pool: MultiScaleRoIPool, maps: list[Tensor], boxes: Tensor) -> Tensor:  # [R, 4] -> [R, C, h, w]
    """``MultiScaleRoIPool.forward`` for one image."""
    levels = pool.levels(boxes)
    maps = maps[pool.first :]
    rois = F.pad(boxes, (1, 0))
    chosen = [torch.where(levels == level)[0] for level in range(len(pool.layers))]
    pooled = [layer(maps[level], rois[chosen[level]]) for level, layer in enumerate(pool.layers)]
    return torch.cat(pooled)[torch.cat(chosen).argsort()]


def _paste(
    masks: Tensor,  # [D, h, w]
    boxes: Tensor,  # [D, 4]
    rows: Tensor,  # [H]
    columns: Tensor,  # [W]
) -> Tensor:  # [D, 1, H, W]
    """``paste_masks``, all at once: bilinear sampling on a grid is a matrix for each axis."""
    y1, x1, y2, x2 = boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2]
    vertical, horizontal = _resampling(y1, y2, rows, masks.shape[1]), _resampling(x1, x2, columns, masks.shape[2])
    return (vertical @ masks @ horizontal.transpose(1, 2))[:, None]


def _resampling(low: Tensor, high: Tensor, pixels: Tensor, cells: int) -> Tensor:  # [D], [D], [P] -> [D, P, cells]
    place = (pixels + 0.5 - low[:, None]) / (high - low)[:, None] * cells - 0.5
    weight = (1 - (place[..., None] - torch.arange(cells)).abs()).clamp(min=0)
    near = (pixels >= low.trunc()[:, None] - 1) & (pixels < high.trunc()[:, None] + 2)
    return torch.where(near[..., None], weight, 0.0)


# Transform.size_for, resize, normalize and batch_images, before DetectorGraph. The scales are divided as a vector
# because OpenVINO 2026.4 swaps dividend and divisor of scalars here.
_RESIZE = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
resize (float[3, {height}, {width}] image) => (
  float[1, 3, {padded}] batch, float[4] bound, float[4] ratio, float[{height}] rows, float[{width}] columns
) <
  double half = {{0.5}}, double[2] extent = {{{short}, {long}}}, int64 axis0 = {{0}},
  int64 zero = {{0}}, int64 one = {{1}}, int64[2] least = {{1, 1}}, int64[2] unit = {{32, 32}},
  int64[2] unit_less_1 = {{31, 31}}, int64[2] batch_of_colours = {{1, 3}},
  int64[4] corners = {{1, 0, 1, 0}}, int64[6] zeros = {{0, 0, 0, 0, 0, 0}},
  float[3, 1, 1] mean = {{{mean}}}, float[3, 1, 1] std = {{{std}}}
> {{
  own = Shape <start = 1> (image)
  own_sides = Cast <to = 11> (own)
  own_short = ReduceMin <keepdims = 1> (own_sides)
  own_long = ReduceMax <keepdims = 1> (own_sides)
  own_extent = Concat <axis = 0> (own_short, own_long)
  scales = Div (extent, own_extent)
  scale = ReduceMin <keepdims = 0> (scales)
  scaled = Mul (own_sides, scale)
  shifted = Add (scaled, half)
  rounded = Cast <to = 7> (shifted)
  size = Max (rounded, least)
  target = Concat <axis = 0> (batch_of_colours, size)
  picture = Unsqueeze (image, axis0)
  resized = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (picture, , , target)
  centred = Sub (resized, mean)
  normalised = Div (centred, std)
  reach = Add (size, unit_less_1)
  cells = Div (reach, unit)
  padded = Mul (cells, unit)
  missing = Sub (padded, size)
  pads = Concat <axis = 0> (zeros, missing)
  batch = Pad (normalised, pads)
  size_corners = Gather (size, corners)
  bound = Cast <to = 1> (size_corners)
  own_corners = Gather (own, corners)
  own_bound = Cast <to = 1> (own_corners)
  ratio = Div (own_bound, bound)
  own_height = Gather (own, zero)
  own_width = Gather (own, one)
  row_numbers = Range (zero, own_height, one)
  rows = Cast <to = 1> (row_numbers)
  column_numbers = Range (zero, own_width, one)
  columns = Cast <to = 1> (column_numbers)
}}
"""


def detector_to_onnx(
    model: RCNN,  # on the CPU, in eval mode
    size: tuple[int, int] | None,  # (H, W) of all images, or None for any
) -> Any:  # onnx.ModelProto
    """The detector from an image ``[3, H, W]`` in 0..1 to its detections, as an ONNX model."""
    from onnx import compose

    outputs = OUTPUTS if model.settings.masks else OUTPUTS[:3]
    names = ("batch", "bound", "ratio", "rows", "columns")
    core = trace(DetectorGraph(model), _example(model, size), None if size else _dimensions(), names, outputs)
    del core.graph.value_info[:]  # sizes as torch's formulas, which no reader needs
    used = [value.name for value in core.graph.input]
    resize = _resize_graph(model, size, core.ir_version)
    joined = compose.merge_models(
        resize, core, io_map=[(name, name) for name in names if name in used], outputs=list(outputs)
    )
    height, width = size or ("height", "width")
    for output, dimensions in zip(joined.graph.output, [(4,), (), (), (1, height, width)], strict=False):
        _name_dimensions(output, ("detections", *dimensions))
    return joined


def _example(model: RCNN, size: tuple[int, int] | None) -> tuple[Tensor, ...]:
    height, width = _padded(model, size) if size else (256, 320)
    rows, columns = size or (48, 56)
    return torch.zeros(1, 3, height, width), torch.ones(4), torch.ones(4), torch.zeros(rows), torch.zeros(columns)


def _padded(model: RCNN, size: tuple[int, int]) -> tuple[int, int]:
    height, width = model.transform.size_for(*size)
    return height + -height % 32, width + -width % 32


def _dimensions() -> tuple[dict[int, Any], ...]:
    named = torch.export.Dim
    batch = {2: 32 * named("rows_of_cells"), 3: 32 * named("columns_of_cells")}
    return batch, {}, {}, {0: named("height")}, {0: named("width")}


def _resize_graph(model: RCNN, size: tuple[int, int] | None, ir_version: int) -> Any:  # onnx.ModelProto
    from onnx import parser

    def join_numbers(numbers: Any) -> str:
        return ", ".join(repr(float(number)) for number in numbers)

    transform = model.transform
    height, width = size or ("height", "width")
    padded = _padded(model, size) if size else ("padded_height", "padded_width")
    text = _RESIZE.format(
        ir_version=ir_version, opset=OPSET, height=height, width=width, padded=f"{padded[0]}, {padded[1]}",
        short=float(transform.min_size[-1]), long=float(transform.max_size),
        mean=join_numbers(transform.image_mean), std=join_numbers(transform.image_std),
    )  # fmt: skip
    return parser.parse_model(text)


def _name_dimensions(value: Any, dimensions: tuple[int | str, ...]) -> None:
    shape = value.type.tensor_type.shape
    shape.ClearField("dim")
    for dimension in dimensions:
        entry = shape.dim.add()
        if isinstance(dimension, int):
            entry.dim_value = dimension
        else:
            entry.dim_param = dimension
