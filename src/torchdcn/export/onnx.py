"""ONNX files: a layer, a backbone or a whole detector as a graph of standard operators."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..detections import COCO_CLASS_NAMES
from ..files import write_atomically
from ..nn import DeformRoIPool

LARGEST = 2**31 - 2**20  # bytes of weights: protobuf's limit, and room for the graph


def export_onnx(
    model_or_module: nn.Module, path: str | Path, example: Tensor | tuple[Tensor, ...], *, dynamic: bool = True
) -> None:
    """Writes a layer, a backbone or a detector of ours to one ONNX file of standard operators, opset 19.

    Deformable convolutions become DeformConv nodes, which onnxruntime runs from version 1.25 on. The graph computes
    what the module does in eval mode; the module itself stays as it is. The file appears whole, after ``onnx.checker``
    has accepted it, or not at all.

    - A module takes its arguments by their names in ``forward`` and gives ``output``, or ``output_0``, ... for several;
      entries of a dict keep their names. The five maps of a detector's ``backbone`` are ``p2`` to ``p6``. With
      ``dynamic``, batch, height and width of 4-dimensional inputs vary, and the first dimension of others.
    - A detector takes ``image`` ``[3, H, W]``, float32 RGB in 0..1, and gives what ``model([image])[0]`` does:
      ``boxes [D, 4]``, ``scores [D]``, ``labels [D]`` (int64, from 0) and with masks ``masks [D, 1, H, W]``. Resizing,
      normalisation and non-maximum suppression are part of the graph. The file's metadata have ``model``,
      ``class_names`` and ``category_ids`` (JSON).

    Args:
        model_or_module: A detector of :func:`torchdcn.models.create_model`, its ``backbone``, a layer of
            :mod:`torchdcn.nn`, or any module that ``torch.export`` can trace. In float32, on any device.
        path: Ends in ``.onnx``; its folder exists.
        example: For a detector an image ``[3, H, W]``; for a module its input tensor, or a tuple of them.
        dynamic: Whether sizes may vary; if not, they are the example's. A detector's batch is always one image.

    Raises:
        ValueError: An argument that does not fit, or weights of more than 2 GB; the message names the argument.
        TypeError: No module, no tensors, or another dtype.
        OSError: The file can't be written.
        ImportError: onnx or onnxscript are not installed.
        RuntimeError: torch can't trace the module.

    Example:
        >>> import tempfile, torch
        >>> from torchdcn.interop import export_onnx
        >>> from torchdcn.nn import ModulatedDeformConv2dPack
        >>> layer = ModulatedDeformConv2dPack(8, 16, 3, padding=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(layer, f"{folder}/layer.onnx", torch.rand(1, 8, 20, 30))
    """
    _check_packages()
    path = _check_path(path)
    _check_model(model_or_module)
    tensors = _check_example(example)
    # A copy in eval mode on the CPU: the caller's own keeps its mode and its device.
    model = copy.deepcopy(model_or_module).cpu().eval()
    kind = _export_detector if hasattr(model, "roi_heads") else _export_module
    proto = kind(model, tensors, dynamic)
    proto.producer_name, proto.producer_version = "torchdcn", version("torchdcn")
    _write(proto, path)


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"writing ONNX needs {' and '.join(missing)}, which are not installed; run: pip install onnx onnxscript"
        )


def _check_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected a name that ends in .onnx, got {str(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"path: {str(path)!r} is a folder, expected a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {str(path.parent)!r}; make it first")
    return path


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        inner = "; give its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise TypeError(f"model_or_module: expected an nn.Module, got {type(model).__name__}{inner}")
    for name, module in model.named_modules():
        if isinstance(module, DeformRoIPool):
            what = f"{type(module).__name__} ({name})" if name else type(module).__name__
            raise ValueError(
                f"model_or_module: ONNX has no operator for {what}; of a detector with it, export the backbone"
            )
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if wrong := sorted(map(str, dtypes - {torch.float32})):  # onnxruntime has no Conv of float64 on a CPU
        raise TypeError(
            f"model_or_module: expected float32, which every runtime has kernels for, got {wrong[0]}; "
            "export model.float()"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST:
        raise ValueError(f"model_or_module: {size / 1e9:.1f} GB of weights are more than the 2 GB of one ONNX file")


def _check_example(example: Any) -> tuple[Tensor, ...]:
    tensors = example if isinstance(example, (tuple, list)) else (example,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"example: expected a tensor or a tuple of tensors, got {type(tensor).__name__}")
        if 0 in tensor.shape:
            raise ValueError(f"example: expected a tensor with something in it, got shape {list(tensor.shape)}")
    if not tensors:
        raise ValueError("example: expected at least one tensor, got none")
    return tuple(tensor.detach().cpu() for tensor in tensors)


# A detector


def _export_detector(model: nn.Module, tensors: tuple[Tensor, ...], dynamic: bool) -> Any:  # onnx.ModelProto
    from ..models.rcnn import RCNN
    from .onnx_detector import detector_to_onnx

    if not isinstance(model, RCNN):
        raise TypeError(
            f"model_or_module: expected a detector of torchdcn.models.create_model, or a part of another one such as "
            f"its backbone, got {type(model).__name__}"
        )
    image = tensors[0]
    if image.dtype != torch.float32:
        raise TypeError(f"example: expected torch.float32 in 0..1, got {image.dtype}; divide bytes by 255")
    if len(tensors) > 1 or image.dim() != 3 or image.shape[0] != 3:
        got = f"{len(tensors)} tensors" if len(tensors) > 1 else f"shape {list(image.shape)}"
        raise ValueError(f"example: expected one image [3, H, W] for a detector, got {got}")
    proto = detector_to_onnx(model, None if dynamic else (image.shape[1], image.shape[2]))
    names = model.class_names
    if names is None:  # as Detector calls them
        coco = model.num_classes == len(COCO_CLASS_NAMES)
        names = COCO_CLASS_NAMES if coco else tuple(f"class {i}" for i in range(model.num_classes))
    metadata = {"model": model.name, "class_names": names, "category_ids": model.category_ids}
    for key, value in metadata.items():
        if value is not None:
            proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    proto.graph.name = model.name
    proto.doc_string = (
        "image: float32 RGB in 0..1. boxes: (x1, y1, x2, y2) in pixels of the image, best first. labels: indices of "
        "class_names (metadata)." + (" masks: probabilities at the image's size." if model.settings.masks else "")
    )
    return proto


# Any other module


def _export_module(model: nn.Module, tensors: tuple[Tensor, ...], dynamic: bool) -> Any:  # onnx.ModelProto
    from ..models.backbone import Backbone
    from .onnx_trace import trace

    inputs = _input_names(model, len(tensors))
    try:
        with torch.no_grad():
            result = model(*tensors)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"example: {type(model).__name__} does not take it: {reason}") from error
    outputs = ["p2", "p3", "p4", "p5", "p6"] if isinstance(model, Backbone) else _output_names(model, result)
    if not dynamic:
        return trace(model, tensors, None, inputs, outputs)
    if any(min(tensor.shape[2:]) < 2 for tensor in tensors if tensor.dim() == 4):
        raise ValueError("example: a height or width of 1 can't vary; give a larger example, or dynamic=False")
    varying = tuple((0, 2, 3) if tensor.dim() == 4 else (0,)[: tensor.dim()] for tensor in tensors)
    # torch takes a dimension of 0 or 1 for a constant. A batch of two in its place changes nothing else.
    tensors = tuple(torch.cat([tensor, tensor]) if tensor.shape[:1] == (1,) else tensor for tensor in tensors)
    dimensions = tuple(dict.fromkeys(places, torch.export.Dim.DYNAMIC) for places in varying)
    proto = trace(model, tensors, dimensions, inputs, outputs)
    _rename_dimensions(proto.graph)
    return proto


def _input_names(model: nn.Module, count: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return [f"input_{i}" for i in range(count)]
    if count > len(parameters):
        takes = f"{len(parameters)} tensor" + "s" * (len(parameters) != 1)
        raise ValueError(f"example: {type(model).__name__} takes {takes}, got {count}")
    return [p.name for p in parameters[:count]]


def _output_names(model: nn.Module, result: Any) -> list[str]:
    if isinstance(result, Tensor):
        return ["output"]
    if isinstance(result, Mapping):
        names, values = [str(key) for key in result], list(result.values())
    elif isinstance(result, (tuple, list)):
        names, values = [f"output_{i}" for i in range(len(result))], list(result)
    else:
        names, values = [], [result]
    for value in values:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"model_or_module: expected {type(model).__name__} to return tensors, got {type(value).__name__}"
            )
    return names


def _rename_dimensions(graph: Any) -> None:
    """Torch's ``s31`` becomes ``batch``, ``height``, ``width``, wherever it stands."""
    names: dict[str, str] = {}
    for value in graph.input:
        prefix = "" if value.name == graph.input[0].name else f"{value.name}_"
        for place, name in ((0, "batch"), (2, "height"), (3, "width")):
            dimensions = value.type.tensor_type.shape.dim
            if place < len(dimensions) and dimensions[place].dim_param:
                names.setdefault(dimensions[place].dim_param, f"{prefix}{name}")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dimension.dim_param)


def _write(proto: Any, path: Path) -> None:
    from onnx import checker

    def write_checked(temporary: Path) -> None:
        temporary.write_bytes(proto.SerializeToString())
        checker.check_model(str(temporary), full_check=True)

    write_atomically(path, write_checked)
