"""Weights files: writing ours, reading ours and mmdetection's, and mmdetection's names as data."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .zoo import MODELS, is_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_METADATA = "torchdcn"  # the entry of a safetensors file's metadata that holds ours, as JSON


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file of ours says beside the tensors.

    Attributes:
        model: The name for :func:`create_model`.
        num_classes: Classes, without the background.
        settings: Where the model differs from that name's defaults, as JSON has it.
        class_names: What label ``i`` is called, or None.
        category_ids: Label ``i`` in COCO-format results, or None.
    """

    model: str
    num_classes: int
    settings: dict[str, Any]
    class_names: tuple[str, ...] | None
    category_ids: tuple[int, ...] | None


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
    info = _info_of(model)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, name, metadata={_METADATA: json.dumps(asdict(info))})
        Path(name).chmod(0o666 & ~_umask())  # a temporary file is the owner's alone
        Path(name).replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _info_of(model: Any) -> WeightsInfo:
    defaults = MODELS[model.name]
    changed = {
        field.name: value
        for field in fields(defaults)
        if (value := getattr(model.settings, field.name)) != getattr(defaults, field.name)
    }
    info = WeightsInfo(model.name, model.num_classes, changed, model.class_names, model.category_ids)
    _check_info(info)  # what is refused on reading should not be written
    return info


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
    """What a weights file says about itself, or None for one that is not ours.

    Raises:
        OSError: The file is missing or can't be read.
        ValueError: It is not a weights file, or what it says about itself does not hold together.
    """
    path = _existing(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
        if text is None:
            return None
        info = WeightsInfo(**json.loads(text))
        _check_info(info)
        names, ids = info.class_names, info.category_ids
        return replace(info, class_names=names and tuple(names), category_ids=ids and tuple(ids))
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a weights file of torchdcn: {_one_line(error)}") from error


def read_state_dict(path: str | Path, argument: str = "weights") -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pth`` file, read without running what it holds.

    Args:
        path: The file.
        argument: What the message about a missing file calls it.

    Raises:
        OSError: The file is missing or can't be read.
        ValueError: It is not a weights file, or holds something else than tensors.
    """
    path = _existing(path, argument)
    kind = _kind(path)
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(str(path)))
        except (SafetensorError, ValueError) as error:
            advice = "a file of torch should end in .pth" if kind == "torch" else _one_line(error)
            raise ValueError(f"{path}: not a weights file of safetensors: {advice}") from error
    if kind != "torch":
        renamed = ", but a safetensors file under another name; let it end in .safetensors"
        raise ValueError(f"{path}: not a weights file of torch{renamed if kind else ' or safetensors'}")
    content = _load_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _load_torch(path: Path) -> Any:
    damaged = f"{path}: damaged, or not a weights file of torch"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message teaches how to run what the file holds
        objects = f"{path}: holds other Python objects than tensors, which are not loaded; save the state_dict alone"
        raise ValueError(objects if "nsupported" in str(error) else damaged) from error
    except (RuntimeError, EOFError, LookupError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(f"{damaged}: {_one_line(error)}") from error
    except (ValueError, ArithmeticError, struct.error) as error:  # of bytes that mean nothing
        raise ValueError(damaged) from error


def _kind(path: Path) -> str | None:
    """``"torch"`` or ``"safetensors"`` by what a file starts with, or None."""
    with path.open("rb") as file:
        head = file.read(9)
    # The length of a JSON object, and the object.
    if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    return "torch" if head[:4] == b"PK\3\4" or head[:1] == pickle.PROTO else None  # zip, and before PyTorch 1.6


def _existing(path: str | Path, argument: str = "weights") -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}")
    return path


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


# --- mmdetection's names: theirs and ours; {i} is a number, {leaf} and {path} are what follows. ----------

MMDET_NAMES = (
    ("backbone.{path}", "backbone.body.{path}"),
    ("neck.lateral_convs.{i}.conv.{leaf}", "backbone.fpn.inner_blocks.{i}.0.{leaf}"),
    ("neck.fpn_convs.{i}.conv.{leaf}", "backbone.fpn.layer_blocks.{i}.0.{leaf}"),
    ("rpn_head.rpn_conv.{leaf}", "rpn.head.conv.0.0.{leaf}"),
    ("rpn_head.rpn_cls.{leaf}", "rpn.head.cls_logits.{leaf}"),
    ("rpn_head.rpn_reg.{leaf}", "rpn.head.bbox_pred.{leaf}"),
    ("roi_head.bbox_head.shared_fcs.0.{leaf}", "roi_heads.box_head.fc6.{leaf}"),
    ("roi_head.bbox_head.shared_fcs.1.{leaf}", "roi_heads.box_head.fc7.{leaf}"),
    ("roi_head.bbox_head.fc_cls.{leaf}", "roi_heads.box_predictor.cls_score.{leaf}"),
    ("roi_head.bbox_head.fc_reg.{leaf}", "roi_heads.box_predictor.bbox_pred.{leaf}"),
    ("roi_head.mask_head.convs.{i}.conv.{leaf}", "roi_heads.mask_head.{i}.0.{leaf}"),
    ("roi_head.mask_head.upsample.{leaf}", "roi_heads.mask_predictor.conv5_mask.{leaf}"),
    ("roi_head.mask_head.conv_logits.{leaf}", "roi_heads.mask_predictor.mask_fcn_logits.{leaf}"),
)
_OLD_OFFSET = re.compile(r"_offset\.(weight|bias)$")  # conv2_offset.weight, now conv2.conv_offset.weight
_FIELDS = {"{i}": r"(?P<i>\d+)", "{leaf}": r"(?P<leaf>weight|bias)", "{path}": r"(?P<path>.+)"}


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\})", name)
    return re.compile("".join(_FIELDS.get(part) or re.escape(part) for part in parts))


_FROM_MMDET = [(_pattern(theirs), ours) for theirs, ours in MMDET_NAMES]


def is_mmdet(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether names are mmdetection's."""
    return any(key.startswith(("neck.", "rpn_head.", "roi_head.")) for key in state_dict)


def convert_mmdet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An mmdetection detector's state dict under our names; its last class, the background, comes first here.

    Older files call an offset convolution ``conv2_offset``; both names are read.

    Raises:
        ValueError: Names that are not known; the message lists them.

    Example:
        >>> import torch
        >>> from torchdcn.models.weights import convert_mmdet
        >>> list(convert_mmdet({"neck.fpn_convs.0.conv.bias": torch.zeros(256)}))
        ['backbone.fpn.layer_blocks.0.0.bias']
    """
    result: dict[str, Tensor] = {}
    unknown = []
    for key, value in state_dict.items():
        name = _our_name(key)
        if name is None:
            unknown.append(key)
        else:
            result[name] = value.roll(1, dims=0) if ".cls_score." in name else value
    if unknown:
        raise ValueError(f"state_dict: names that no model of ours has: {_some(unknown)}")
    return result


def _our_name(key: str) -> str | None:
    if "conv_offset." not in key:
        key = _OLD_OFFSET.sub(r".conv_offset.\1", key)
    for pattern, template in _FROM_MMDET:
        if match := pattern.fullmatch(key):
            return template.format(**match.groupdict())
    return None


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# --- Loading ---------------------------------------------------------------------------------------------

CLASS_LAYERS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
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
        ValueError: Names or shapes differ; the message has the first few.
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
        text = "; ".join(f"{what}: {_some(names, 3)}" for what, names in faults if names)
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(f"{source}: does not fit {name}; {text}")
    model.load_state_dict(dict(state_dict), strict=False)
