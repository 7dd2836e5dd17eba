"""Weights from mmdetection and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from ..models.weights import MIMIC_LAYERS, load_weights, name_classes, name_of
from ..weights.messages import describe_mismatch
from ..weights.mmdet import convert_mmdet, hint_for_unknown, revert_mmdet, to_current_names
from ..weights.read import WeightsFile, read_weights

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)


def load_mmdet(model: Model, path_or_state_dict: str | Path | Mapping[str, Tensor]) -> Model:
    """Loads an mmdetection detector's weights into a model of ours, all of them or none.

    A file is read without running what it holds; the class names that it has become the model's.

    Args:
        model: Made by :func:`torchdcn.models.create_model`, for as many classes as the weights.
        path_or_state_dict: A checkpoint of mmdetection 2 or 3, or the tensors under its names (with the prefix
            ``module.`` or without; ``conv2_offset`` as older versions write).

    Returns:
        The model.

    Raises:
        ValueError: Names that the model lacks or that are missing, or other shapes; the message lists them as
            mmdetection writes them. Or the file is damaged, or the model is one that mmdetection does not have.
        TypeError: Neither a path nor a mapping of tensors.
        OSError: A file that is missing or can't be read.

    Example:
        >>> import torchdcn
        >>> from torchdcn.interop import load_mmdet, to_mmdet
        >>> name, small = "faster_rcnn_r18_fpn_mdconv_c3-c5", {"num_classes": 2, "norm": "frozen_bn"}
        >>> one, other = (torchdcn.models.create_model(name, **small) for _ in range(2))
        >>> load_mmdet(other, to_mmdet(one)) is other
        True
    """
    source, file = _read_source(path_or_state_dict)
    try:
        given = to_current_names({key.removeprefix("module."): value for key, value in file.tensors.items()})
    except ValueError as error:
        raise ValueError(f"path_or_state_dict: {source}: {str(error).removeprefix('state_dict: ')}") from error
    expected = to_mmdet(model)
    if faults := describe_mismatch(given, expected):
        hint = hint_for_unknown(given.keys() - expected.keys())
        raise ValueError(f"path_or_state_dict: {source} does not fit {name_of(model)}; {faults}{hint}")
    own = {key: value for key, value in model.state_dict().items() if key.startswith(MIMIC_LAYERS)}
    load_weights(model, convert_mmdet(given) | own, f"path_or_state_dict: {source}")
    name_classes(model, file.class_names)
    return model


def to_mmdet(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights under mmdetection's names, with the background as the last class.

    ``torch.save({"state_dict": to_mmdet(model)}, "model.pth")`` writes a checkpoint for mmdetection. Its counters
    ``num_batches_tracked`` are 0. The extra layer of feature mimicking is for training only and left out. Names of
    ``faster_rcnn_r18_*`` and the like are those that mmdetection would have: its ResNet-18 knows no deformable layers.

    Args:
        model: Made by :func:`torchdcn.models.create_model`.

    Returns:
        Contiguous tensors, detached; those that need no change share the model's memory.

    Raises:
        ValueError: The model has parts that mmdetection lacks; the message lists them. So has the paper's own detector
            (``faster_rcnn_r50_dcnv2``, ``mask_rcnn_r50_dcnv2``).

    Example:
        >>> import torchdcn
        >>> from torchdcn.interop import to_mmdet
        >>> list(to_mmdet(torchdcn.models.create_model("faster_rcnn_r18_fpn")))[-1]
        'roi_head.bbox_head.fc_reg.bias'
    """
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(MIMIC_LAYERS)}
    try:
        renamed = revert_mmdet(state)
    except ValueError as error:
        raise ValueError(f"model: {name_of(model)} has no counterpart there: {error}") from error
    if not any(key.startswith("neck.") for key in renamed):
        raise ValueError(f"model: {name_of(model)} has no counterpart in mmdetection, whose detectors have a pyramid")
    return {key: value.detach().contiguous() for key, value in renamed.items()}


def _read_source(given: str | Path | Mapping[str, Tensor]) -> tuple[str, WeightsFile]:
    if isinstance(given, (str, Path)):
        return str(given), read_weights(given, "path_or_state_dict")
    if not isinstance(given, Mapping):
        raise TypeError(f"path_or_state_dict: expected a path or a dict of tensors, got {type(given).__name__}")
    if wrong := [key for key, value in given.items() if not isinstance(value, Tensor)]:
        got = f"{type(given[wrong[0]]).__name__} under {wrong[0]!r}"
        advice = "; give its entry 'state_dict'" if "state_dict" in given else ""
        raise TypeError(f"path_or_state_dict: expected a dict of tensors, got {got}{advice}")
    return "the state dict", WeightsFile({str(key): value for key, value in given.items()})
