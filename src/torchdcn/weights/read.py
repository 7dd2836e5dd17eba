"""Reading any weights file: ours, one of safetensors, or one of torch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .messages import existing_file, first_line
from .torch_file import Inert, read_torch
from .torchdcn_file import METADATA_KEY, WeightsInfo, info_from_json, read_info

if TYPE_CHECKING:
    from pathlib import Path


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
    found = _detect_format(path)
    if path.suffix == ".safetensors":
        try:
            tensors = dict(load_file(str(path)))
        except (SafetensorError, ValueError) as error:
            advice = "a file of torch should end in .pth" if found == "torch" else first_line(error)
            raise ValueError(f"{path}: not a weights file of safetensors: {advice}") from error
        info = read_info(path)
        return WeightsFile(tensors, info, None if info is None else info.class_names)
    if found != "torch":
        renamed = ", but a safetensors file under another name; let it end in .safetensors"
        raise ValueError(f"{path}: not a weights file of torch{renamed if found else ' or safetensors'}")
    return _from_torch(path, read_torch(path))


def _from_torch(path: Path, content: Any) -> WeightsFile:
    meta = content.get("meta") if isinstance(content, dict) else None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a dict of tensors, got {_describe(content)}")
    if wrong := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        got = _describe(content[wrong[0]])
        raise ValueError(f"{path}: expected a dict of tensors, got {got} under {str(wrong[0])[:100]!r}")
    tensors = {str(key).removeprefix("module."): value for key, value in content.items()}
    meta = meta if isinstance(meta, dict) else {}
    info = None
    if isinstance(text := meta.get(METADATA_KEY), str):
        try:
            info = info_from_json(text)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a weights file of torchdcn: {first_line(error)}") from error
    return WeightsFile(tensors, info, info.class_names if info is not None else _class_names(meta))


def _describe(value: Any) -> str:
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


def _detect_format(path: Path) -> str | None:
    """``"torch"`` or ``"safetensors"`` by what a file starts with, or None."""
    with path.open("rb") as file:
        head = file.read(9)
    # The length of a JSON object, and the object.
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    return "torch" if head[:4] == b"PK\3\4" or head[:1] == pickle.PROTO else None  # zip, and before PyTorch 1.6
