"""A weights file of ours: a ``.safetensors`` file that says in its metadata which model it is of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import write_atomically
from .messages import existing_file, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

METADATA_KEY = "torchdcn"
"""The entry of a file's metadata that holds :class:`WeightsInfo`, as JSON."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file of ours says beside the tensors.

    Attributes:
        model: The name for :func:`torchdcn.models.create_model`.
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


def write_weights(tensors: Mapping[str, Tensor], info: WeightsInfo, path: Path) -> None:
    """Writes a ``.safetensors`` file under our names; all of it or nothing. Its folder is made if need be.

    Args:
        tensors: On the CPU, contiguous.
        info: What the file says about itself.
        path: Where to.

    Raises:
        OSError: It can't be written.
    """
    metadata = {METADATA_KEY: info_to_json(info)}
    try:
        write_atomically(path, lambda file: save_file(dict(tensors), file, metadata=metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error


def info_to_json(info: WeightsInfo) -> str:
    """The text that goes into a file's metadata."""
    return json.dumps(asdict(info))


def info_from_json(text: str) -> WeightsInfo:
    """The inverse of :func:`info_to_json`.

    Raises:
        ValueError: What the text says does not hold together.
        TypeError: It has other entries, or is no JSON object.
    """
    info = WeightsInfo(**json.loads(text))
    check_info(info)
    names, ids = info.class_names, info.category_ids
    return replace(info, class_names=names and tuple(names), category_ids=ids and tuple(ids))


def check_info(info: WeightsInfo) -> None:
    """Raises ValueError where an entry has another type, or class names or category ids are not one for each class."""
    if not isinstance(info.model, str):
        raise ValueError(f"model: expected a name, got {info.model!r}")
    if type(info.num_classes) is not int or info.num_classes < 1:
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
            text = (file.metadata() or {}).get(METADATA_KEY)
        return None if text is None else info_from_json(text)
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a weights file of torchdcn: {first_line(error)}") from error
