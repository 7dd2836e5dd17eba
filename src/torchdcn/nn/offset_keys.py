"""Names that other projects give to the layer that predicts a pack's offsets, in state dicts."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from .deform_conv import DeformConv2dPack, ModulatedDeformConv2dPack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

_LEAVES = ("weight", "bias")


def rename_offset_keys(model: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names that a model's packs have here, for ``load_state_dict``.

    For the pack ``layer2.0.conv2`` these names become ``layer2.0.conv2.conv_offset``:

    - ``layer2.0.conv2_offset``, a layer beside the convolution, in older mmdetection and in detectron2. Where the
      model has a module of that name, the name stays.
    - ``layer2.0.conv2.conv_offset_mask``, for modulated packs, in the ``DCN`` of CharlesShang/DCNv2.

    The order of the channels is the same in all of them, so tensors are not changed. Other keys stay as they are.

    Args:
        model: Any network that has packs, or one pack.
        state_dict: Its keys belong to ``model``. It is not changed.

    Returns:
        A new dict of the same tensors in the same order.

    Raises:
        ValueError: Two names of one layer; the message has both.

    Example:
        >>> import torch
        >>> from torchdcn.nn import ModulatedDeformConv2dPack, rename_offset_keys
        >>> pack = ModulatedDeformConv2dPack(8, 8, 3)
        >>> dcn = {key.replace("conv_offset", "conv_offset_mask"): value for key, value in pack.state_dict().items()}
        >>> pack.load_state_dict(rename_offset_keys(pack, dcn))
        <All keys matched successfully>
    """
    names: dict[str, str] = {}
    for ours, others in _layer_names(model):
        _check_one_name(state_dict, [*others, ours])
        names |= {f"{other}.{leaf}": f"{ours}.{leaf}" for other in others for leaf in _LEAVES}
    renamed = OrderedDict((names.get(key, key), value) for key, value in state_dict.items())
    if (versions := getattr(state_dict, "_metadata", None)) is not None:
        renamed._metadata = versions  # type: ignore[attr-defined]  # load_state_dict reads it of any dict
    return renamed


def _layer_names(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """For each pack, our name of the layer that predicts its offsets, and the others."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if isinstance(module, DeformConv2dPack):
            others = [f"{path}_offset"] if path and f"{path}_offset" not in modules else []
            if isinstance(module, ModulatedDeformConv2dPack):
                others.append(f"{path}.conv_offset_mask".removeprefix("."))
            yield f"{path}.conv_offset".removeprefix("."), others


def _check_one_name(state_dict: Mapping[str, Tensor], names: list[str]) -> None:
    found = [[key for leaf in _LEAVES if (key := f"{name}.{leaf}") in state_dict] for name in names]
    first = [keys[0] for keys in found if keys]
    if len(first) > 1:
        raise ValueError(
            f'state_dict: "{first[0]}" and "{first[1]}" are two names of one layer, which predicts offsets: keep one'
        )
