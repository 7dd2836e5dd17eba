"""A model's weights: to a file of ours, and from a state dict into the model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from ..nn import rename_offset_keys
from ..weights.messages import describe_mismatch
from ..weights.torchdcn_file import WeightsInfo, check_info, read_info, write_weights
from .zoo import MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["WeightsInfo", "read_info", "save_weights"]  # what docs/weights.md names

MIMIC_LAYERS = "mimic."
"""Feature mimicking's own layer, which only training needs: files and models may lack it."""

CLASS_LAYERS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.", MIMIC_LAYERS)
"""The layers whose shapes depend on the number of classes."""


def classes_in(state_dict: Mapping[str, Tensor]) -> int | None:
    """The number of classes, without the background, that a state dict under our names is for."""
    scores = state_dict.get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores) - 1


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Writes a detector to a ``.safetensors`` file that says which model it is; all of it or nothing.

    Args:
        model: Made by :func:`create_model`.
        path: Ends in ``.safetensors``; its folder is made if need be.

    Raises:
        ValueError: The path ends otherwise, or the model's class names or category ids are not one for each class.
        OSError: The file can't be written.

    Example:
        >>> import tempfile, torchdcn
        >>> from torchdcn.models.weights import read_info, save_weights
        >>> model = torchdcn.models.create_model("faster_rcnn_r18_fpn", num_classes=2)
        >>> model.class_names = ("cat", "dog")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(model, f"{folder}/pets.safetensors")
        ...     read_info(f"{folder}/pets.safetensors").class_names
        ('cat', 'dog')
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a name that ends in .safetensors, got {str(path)!r}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_weights(tensors, info_of(model), path)


def info_of(model: Any) -> WeightsInfo:
    """What a file with a model's weights says about itself.

    Raises:
        ValueError: The model's class names or category ids are not one for each class.
    """
    defaults = MODELS[model.name]
    changed = {
        field.name: value
        for field in fields(defaults)
        # Whether to mimic is a run's decision, not a property of what it trained.
        if field.name != "mimic" and (value := getattr(model.settings, field.name)) != getattr(defaults, field.name)
    }
    info = WeightsInfo(model.name, model.num_classes, changed, model.class_names, model.category_ids)
    check_info(info)  # what is refused on reading should not be written
    return info


def name_of(model: nn.Module) -> str:
    """A model's name for a message: the one that it was created by, or its class."""
    return str(getattr(model, "name", type(model).__name__))


def name_classes(model: Any, names: tuple[str, ...] | None) -> None:
    """Tells a model what its classes are called, if there is a name for each; COCO's 80 come with their category ids.

    Old checkpoints write COCO's names with underscores.
    """
    if names is None or len(names) != model.num_classes:
        return
    coco = tuple(name.replace("_", " ") for name in names) == COCO_CLASS_NAMES
    model.class_names = COCO_CLASS_NAMES if coco else names
    model.category_ids = COCO_CATEGORY_IDS if coco else None


def translate_keys(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """:func:`~torchdcn.nn.rename_offset_keys`, whose error calls the state dict ``source``."""
    try:
        return rename_offset_keys(model, state_dict)
    except ValueError as error:
        raise ValueError(f"{source}: {str(error).removeprefix('state_dict: ')}") from error


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads all tensors of a model, or none.

    Args:
        model: What to load into.
        state_dict: Under our names; those of :func:`~torchdcn.nn.rename_offset_keys` are read too.
        source: What the message calls it.

    Raises:
        ValueError: Names or shapes differ; the message lists them.
    """
    state_dict = translate_keys(model, state_dict, source)
    if faults := describe_mismatch(state_dict, model.state_dict()):
        raise ValueError(f"{source}: does not fit {name_of(model)}; {faults}")
    model.load_state_dict(dict(state_dict), strict=False)
