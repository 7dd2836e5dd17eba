"""From a name, and perhaps a weights file, to a detector."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..weights.mmdet import convert_mmdet, is_mmdet
from ..weights.read import WeightsFile, read_weights
from ..weights.released import released_weights
from .backbone import load_body
from .rcnn import RCNN
from .settings import Settings, is_count, to_python
from .weights import CLASS_LAYERS, MIMIC_LAYERS, classes_in, load_weights, name_classes
from .zoo import MODELS, settings_of, with_overrides

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ..weights.torchdcn_file import WeightsInfo


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    weights_backbone: str | Path | None = None,
    **overrides: Any,
) -> RCNN:
    """Builds a detector, in training mode.

    Args:
        name: One of :func:`list_models`.
        weights: A ``.safetensors`` or ``.pth`` file, ours or mmdetection's, or ``"coco"`` for the published
            weights, which are downloaded once (:func:`~torchdcn.weights.released.released_weights`). Ours also
            says with which settings and for which classes it was trained.
        num_classes: Classes, without the background. By default the weights file's, or 80. A number other
            than the file's makes the layers that depend on it start anew, with a warning.
        weights_backbone: ``"imagenet"`` (torchvision's weights, downloaded once), or a file with the weights
            of a ResNet. Not read where ``weights`` are given.
        **overrides: Fields of :class:`~torchdcn.models.settings.Settings`, such as ``min_size`` or ``mimic``.

    Returns:
        A module after torchvision's convention, see :class:`~torchdcn.models.rcnn.RCNN`.

    Raises:
        ValueError: An unknown name, a value that does not fit, or weights that do not.
        TypeError: An override that is not a setting, or a name that is no text.
        OSError: A file that is missing, or a download that failed.

    Example:
        >>> import torch, torchdcn
        >>> model = torchdcn.models.create_model("faster_rcnn_r18_fpn_mdconv_c3-c5", num_classes=3)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['loss_box_reg', 'loss_classifier', 'loss_objectness', 'loss_rpn_box_reg']
    """
    settings_of(name, **overrides)  # complains about these before any file is read
    num_classes = to_python(num_classes)
    if num_classes is not None and not is_count(num_classes):
        raise ValueError(f"num_classes: expected a positive int, got {num_classes!r}")
    file = None if weights is None else _read_file(name, weights)
    info, state = (None, None) if file is None else (file.info, file.tensors)
    settings = _resolve_settings(name, info, state, weights, weights_backbone, overrides)
    model = RCNN(settings, num_classes or (classes_in(state) if state else None) or 80)
    model.name = name
    if file is not None:
        _load_file(model, file, weights)
    elif weights_backbone is not None:
        load_body(model.backbone, settings, weights_backbone)
    return model


def _read_file(name: str, weights: str | Path) -> WeightsFile:
    file = read_weights(released_weights(name) if str(weights) == "coco" else weights)
    if is_mmdet(file.tensors):
        try:
            file = replace(file, tensors=convert_mmdet(file.tensors))
        except ValueError as error:
            raise ValueError(f"weights: {weights}: {str(error).removeprefix('state_dict: ')}") from error
    found = classes_in(file.tensors)
    if file.info is not None and found not in (None, file.info.num_classes):
        says = f"says it has {file.info.num_classes} classes, but its layers are for {found}"
        raise ValueError(f"weights: {weights} {says}")
    return file


def _load_file(model: RCNN, file: WeightsFile, weights: Any) -> None:
    state, info = file.tensors, file.info
    found = classes_in(state)
    if found is not None and found != model.num_classes:
        message = f"num_classes: {weights} has {found} classes; the layers for {model.num_classes} start anew"
        warnings.warn(message, stacklevel=3)
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(CLASS_LAYERS)}
        state = {k: v for k, v in state.items() if not k.startswith(CLASS_LAYERS)} | fresh
    elif info is not None:
        model.class_names, model.category_ids = info.class_names, info.category_ids
    else:
        name_classes(model, file.class_names)
    # A file may lack mimicking's classifier, or have it for a model without: training alone needs it.
    own = {k: v for k, v in model.state_dict().items() if k.startswith(MIMIC_LAYERS)}
    state = own | {k: v for k, v in state.items() if k in own or not k.startswith(MIMIC_LAYERS)}
    try:
        load_weights(model, state, f"weights: {weights}")
    except ValueError as error:
        _raise_if_other_model(model.name, info, weights, error)
        raise


def _raise_if_other_model(name: str, info: WeightsInfo | None, weights: Any, error: Exception) -> None:
    """Two names may stand for one network, so that another name alone is no fault."""
    if info is not None and info.model != name:
        held = f"weights: {weights} holds a {info.model}, not a {name}"
        raise ValueError(f"{held}; give that name, or weights of the model you named") from error


def _resolve_settings(
    name: str,
    info: WeightsInfo | None,
    state: dict[str, Tensor] | None,
    weights: Any,
    weights_backbone: str | Path | None,
    overrides: dict[str, Any],
) -> Settings:
    """The settings, with those that depend on what the weights are."""
    saved = info.settings if info is not None else {}
    try:
        # With its longest side, which such a file only has where it is not the name's own.
        settings = settings_of(name, **({"max_size": MODELS[name].max_size} | saved))
    except (TypeError, ValueError) as error:
        _raise_if_other_model(name, info, weights, error)
        raise ValueError(f"weights: the file's settings can't be used by this version: {error}") from error
    settings = with_overrides(settings, overrides)
    pretrained = state is not None or weights_backbone is not None
    if settings.norm is None:
        if state is not None:
            norm = "bn_eval" if "backbone.body.bn1.running_mean" in state else "gn"
        elif weights_backbone is not None:
            norm = "bn_eval"
        else:
            norm = "gn" if settings.backbone == "r18" else "bn"
        settings = replace(settings, norm=norm)
    if settings.trainable_backbone_layers is None:
        settings = replace(settings, trainable_backbone_layers=3 if pretrained else 5)
    return settings
