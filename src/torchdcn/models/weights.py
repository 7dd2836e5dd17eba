"""Weights files: writing ours, reading ours and those of torch, and loading what they hold."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import write_atomically
from .mmdet import some
from .settings import is_count
from .torch_file import Inert, one_line, read_torch
from .zoo import MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_METADATA = "torchdcn"  # the entry of a file's metadata that holds ours, as JSON


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file of ours says beside the tensors.

    Attributes:
        model: The name for :func:`create_model`.
        num_classes: Classes, without the background.
        settings: Where the model differs from that name's defaults, as JSON has it.
        class_names: What label ``i`` is called, or None.
        category_ids: Label ``i`` in COCO-format results, or None.
        source: The released file that it was converted from, or None.
    """

    model: str
    num_classes: int
    settings: dict[str, Any]
    class_names: tuple[str, ...] | None
    category_ids: tuple[int, ...] | None
    source: str | None = None


@dataclass(frozen=True)
class WeightsFile:
    """All that a weights file holds.

    Attributes:
        tensors: By name, as they are in the file.
        info: What one of ours says about itself, or None.
        class_names: What label ``i`` is called, in a file of ours or mmdetection's, or None.
    """

    tensors: dict[str, Tensor]
    info: WeightsInfo | None = None
    class_names: tuple[str, ...] | None = None


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


def write_weights(tensors: Mapping[str, Tensor], info: WeightsInfo, path: Path) -> None:
    """Writes a ``.safetensors`` file under our names; all of it or nothing. Its folder is made if need be.

    Args:
        tensors: On the CPU, contiguous.
        info: What the file says about itself.
        path: Where to.

    Raises:
        OSError: It can't be written.
    """
    metadata = {_METADATA: info_as_text(info)}
    try:
        write_atomically(path, lambda file: save_file(dict(tensors), file, metadata=metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error


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
    _check_info(info)  # what is refused on reading should not be written
    return info


def info_as_text(info: WeightsInfo) -> str:
    """As JSON, which files carry it as."""
    return json.dumps(asdict(info))


def _info_from_text(text: str) -> WeightsInfo:
    info = WeightsInfo(**json.loads(text))
    _check_info(info)
    names, ids = info.class_names, info.category_ids
    return replace(info, class_names=names and tuple(names), category_ids=ids and tuple(ids))


def _check_info(info: WeightsInfo) -> None:
    if not isinstance(info.model, str):
        raise ValueError(f"model: expected a name, got {info.model!r}")
    if not is_count(info.num_classes):
        raise ValueError(f"num_classes: expected a positive int, got {info.num_classes!r}")
    if not isinstance(info.settings, dict):
        raise ValueError(f"settings: expected a mapping, got {info.settings!r}")
    for name, kind in (("class_names", str), ("category_ids", int)):
        entries = getattr(info, name)
        if entries is None:
            continue
        what = f"{name}: expected {info.num_classes} entries of type {kind.__name__} or none at all"
        if not isinstance(entries, (list, tuple)):
            raise ValueError(f"{what}, got {entries!r}")
        if len(entries) != info.num_classes:
            raise ValueError(f"{what}, got {len(entries)}")
        if wrong := [entry for entry in entries if not isinstance(entry, kind) or isinstance(entry, bool)]:
            raise ValueError(f"{what}, got {wrong[0]!r} among them")


def read_info(path: str | Path) -> WeightsInfo | None:
    """What a ``.safetensors`` file says about itself, without reading its tensors; None for one that is not ours.

    Raises:
        OSError: The file is missing or can't be read.
        ValueError: It is not a weights file, or what it says about itself does not hold together.
    """
    path = existing_file(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
        return None if text is None else _info_from_text(text)
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a weights file of torchdcn: {one_line(error)}") from error


def read_state_dict(path: str | Path, argument: str = "weights") -> dict[str, Tensor]:
    """The tensors of a weights file; see :func:`read_weights`."""
    return read_weights(path, argument).tensors


def read_weights(path: str | Path, argument: str = "weights") -> WeightsFile:
    """Reads a ``.safetensors`` file, or a ``.pth`` file, without running what it holds.

    Args:
        path: The file.
        argument: What the message about a missing file calls it.

    Raises:
        OSError: The file is missing or can't be read.
        ValueError: It is not a weights file, or holds something else than tensors.
    """
    path = existing_file(path, argument)
    kind = _kind(path)
    if path.suffix == ".safetensors":
        try:
            tensors = dict(load_file(str(path)))
        except (SafetensorError, ValueError) as error:
            advice = "a file of torch should end in .pth" if kind == "torch" else one_line(error)
            raise ValueError(f"{path}: not a weights file of safetensors: {advice}") from error
        info = read_info(path)
        return WeightsFile(tensors, info, None if info is None else info.class_names)
    if kind != "torch":
        renamed = ", but a safetensors file under another name; let it end in .safetensors"
        raise ValueError(f"{path}: not a weights file of torch{renamed if kind else ' or safetensors'}")
    return _from_torch(path, read_torch(path))


def _from_torch(path: Path, content: Any) -> WeightsFile:
    meta = content.get("meta") if isinstance(content, dict) else None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a dict of tensors, got {_kind_of(content)}")
    if wrong := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        got = _kind_of(content[wrong[0]])
        raise ValueError(f"{path}: expected a dict of tensors, got {got} under {str(wrong[0])[:100]!r}")
    tensors = {str(key).removeprefix("module."): value for key, value in content.items()}
    meta = meta if isinstance(meta, dict) else {}
    info = None
    if isinstance(text := meta.get(_METADATA), str):
        try:
            info = _info_from_text(text)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a weights file of torchdcn: {one_line(error)}") from error
    return WeightsFile(tensors, info, info.class_names if info is not None else _class_names(meta))


def _kind_of(value: Any) -> str:
    if isinstance(value, Inert):
        return "an object that is not read"
    return "an empty dict" if value == {} else type(value).__name__


def _class_names(meta: dict[str, Any]) -> tuple[str, ...] | None:
    """What mmdetection wrote: ``CLASSES`` in its versions 1 and 2, in version 3 inside of ``dataset_meta``."""
    later = meta.get("dataset_meta")
    for where in (later if isinstance(later, dict) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = where.get(key)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return None


def name_classes(model: Any, names: tuple[str, ...] | None) -> None:
    """Tells a model what its classes are called, if there is a name for each; COCO's 80 come with their category ids.

    Old checkpoints write COCO's names with underscores.
    """
    from ..detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

    if names is None or len(names) != model.num_classes:
        return
    coco = tuple(name.replace("_", " ") for name in names) == COCO_CLASS_NAMES
    model.class_names = COCO_CLASS_NAMES if coco else names
    model.category_ids = COCO_CATEGORY_IDS if coco else None


def _kind(path: Path) -> str | None:
    """``"torch"`` or ``"safetensors"`` by what a file starts with, or None."""
    with path.open("rb") as file:
        head = file.read(9)
    # The length of a JSON object, and the object.
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    return "torch" if head[:4] == b"PK\3\4" or head[:1] == pickle.PROTO else None  # zip, and before PyTorch 1.6


def existing_file(path: str | Path, argument: str = "weights") -> Path:
    """The path, of a file that is there.

    Raises:
        FileNotFoundError: It isn't.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}")
    return path


MIMIC_LAYERS = "mimic."
"""Feature mimicking's own layer, which only training needs: files and models may lack it."""

CLASS_LAYERS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.", MIMIC_LAYERS)
"""The layers whose shapes depend on the number of classes."""


def classes_in(state_dict: Mapping[str, Tensor]) -> int | None:
    """The number of classes, without the background, that a state dict under our names is for."""
    scores = state_dict.get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores) - 1


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads all tensors of a model, or none.

    Args:
        model: What to load into.
        state_dict: Under our names.
        source: What the message calls it.

    Raises:
        ValueError: Names or shapes differ; the message lists them.
    """
    own = model.state_dict()
    # Files from before PyTorch 0.4.1 have no such counters, and nothing reads them.
    missing = [key for key in own if key not in state_dict and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state_dict if key not in own]
    shapes = [
        f"{key} {list(value.shape)} instead of {list(own[key].shape)}"
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    ]
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    if any(names for _, names in faults):
        text = "; ".join(f"{what}: {some(names)}" for what, names in faults if names)
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(f"{source}: does not fit {name}; {text}")
    model.load_state_dict(dict(state_dict), strict=False)
