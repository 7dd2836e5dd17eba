"""Surgery: turns convolutions of a network that exists into deformable ones, which at first compute what they did."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .deform_conv import DeformConv2dPack, ModulatedDeformConv2dPack

Where = str | Iterable[str] | Callable[[str, nn.Conv2d], bool]

STAGES = ("layer1", "layer2", "layer3", "layer4")  # a ResNet's c2 to c5, as torchvision, timm and mmdetection name them
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ATTRIBUTES = frozenset(vars(nn.Conv2d(1, 1, 1, device="meta")))


def deformable(
    model: nn.Module, where: Where | None = None, modulated: bool = True, deform_groups: int = 1
) -> nn.Module:
    """Replaces chosen ``nn.Conv2d`` of a network by deformable packs that keep what they learned.

    Each becomes a :class:`ModulatedDeformConv2dPack` (or :class:`DeformConv2dPack`) under the same name, whose new
    child ``conv_offset`` starts at zero: no sample moves at first. Its mask then is 0.5 everywhere, so weights are
    doubled, and the network's output is what it was but for rounding. Biases are not doubled.

    The weight's and bias's dtype, device, memory format, ``requires_grad`` and training mode stay; what is new trains
    even where the old weight is frozen. A convolution that is used in several places, or that shares its weight with
    another chosen one, still does. Doubled weights are new parameters: make the optimizer afterwards, with
    :func:`offset_parameters` for a learning rate of their own.

    Args:
        model: Any network. It is changed in place, all of it or, on an error, nothing.
        where: Which convolutions.

            - A pattern of module paths as ``fnmatch`` has them (``"layer[234].*.conv2"``; ``*`` crosses dots, case
              counts), or several. Everything that a pattern matches must be a replaceable convolution.
            - A callable ``(name, conv) -> bool``, asked about every ``nn.Conv2d`` outside of packs.
            - None: the convolutions with a kernel larger than 1x1 that a pack can replace; where the network has
              the stages of a ResNet (``layer1`` to ``layer4``), those of the last three only, the paper's c3 to c5.
        modulated: Whether to predict masks besides offsets (v2); else offsets alone (v1).
        deform_groups: Groups of channels that move together; divides every chosen convolution's ``in_channels``.

    Returns:
        The model; or the pack, where the model itself is the ``nn.Conv2d``.

    Raises:
        ValueError: ``where`` chooses nothing (the nearest names are given) or something that a pack can't replace:
            another module, a subclass of ``nn.Conv2d``, a padding that isn't zeros or isn't the same on both sides,
            a weight that is computed (weight norm, pruning), hooks, which would be lost; or ``deform_groups`` does not
            divide the channels.
        TypeError: An argument of the wrong kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchdcn.nn import deformable
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> image = torch.rand(1, 3, 20, 30)
        >>> before = net(image)
        >>> deformable(net, where="2")
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (1): ReLU()
          (2): ModulatedDeformConv2dPack(
            8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)
            (conv_offset): Conv2d(8, 27, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          )
        )
        >>> torch.allclose(net(image), before, atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if not isinstance(deform_groups, int) or isinstance(deform_groups, bool) or deform_groups < 1:
        raise ValueError(f"deform_groups: expected an int of at least 1, got {deform_groups!r}")
    modules = _replaceable_places(model)
    chosen = _chosen(model, modules, where)
    _check_divides(deform_groups, chosen)
    if modulated:
        _check_ties(model, chosen)

    doubled: dict[Tensor, nn.Parameter] = {}
    packs = {conv: _pack(conv, modulated, deform_groups, doubled) for conv in chosen.values()}
    if isinstance(model, nn.Conv2d):
        return packs[model]
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d) and module in packs:
            model.set_submodule(name, packs[module])
    return model


def _replaceable_places(model: nn.Module) -> dict[str, nn.Module]:
    """Every path of the model and what is there, a shared module several times; the root only if it is all there is."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if not isinstance(model, nn.Conv2d):
        del modules[""]
    return modules


# What is chosen


def _chosen(model: nn.Module, modules: dict[str, nn.Module], where: Where | None) -> dict[str, nn.Conv2d]:
    """Paths and convolutions, all of them replaceable."""
    in_packs = {
        child for module in modules.values() if isinstance(module, DeformConv2dPack) for child in module.children()
    }
    convs = {n: m for n, m in modules.items() if isinstance(m, nn.Conv2d) and m not in in_packs}
    if not convs:
        raise ValueError(f"model: this {type(model).__name__} has no nn.Conv2d that could become deformable")
    if where is None:
        return _by_default(model, convs)
    if callable(where) and not isinstance(where, (type, nn.Module)):
        chosen: dict[str, nn.Module] = {name: conv for name, conv in convs.items() if where(name, conv)}
        if not chosen:
            raise ValueError(f"where: the callable chose none of the model's {len(convs)} convolutions")
    else:
        chosen = {}
        for pattern in _patterns(where):
            chosen |= _matches(pattern, modules, convs)
    obstacles = {
        name: f"it predicts the offsets of {name.rpartition('.')[0]}" if module in in_packs else obstacle
        for name, module in chosen.items()
        if (obstacle := _obstacle(module)) or module in in_packs
    }
    for name, obstacle in obstacles.items():
        others = f" (so are {len(obstacles) - 1} more that can't)" if len(obstacles) > 1 else ""
        raise ValueError(f"where: {name or 'the model'} is chosen{others}, but can't become deformable: {obstacle}")
    return {name: module for name, module in chosen.items() if isinstance(module, nn.Conv2d)}


def _patterns(where: object) -> list[str]:
    several = isinstance(where, Iterable) and not isinstance(where, (str, bytes, type, nn.Module))
    given: list[object] = list(where) if several else [where]  # type: ignore[call-overload]  # it is iterable
    patterns = [pattern for pattern in given if isinstance(pattern, str)]
    for other in given:
        if not isinstance(other, str):
            kind = type(other).__name__ + (" among them" if several else "")
            raise TypeError(f"where: expected a pattern, several, or a callable (name, conv) -> bool, got {kind}")
    if not patterns:
        raise ValueError("where: expected at least one pattern, got none")
    return patterns


def _matches(pattern: str, modules: dict[str, nn.Module], convs: dict[str, nn.Conv2d]) -> dict[str, nn.Module]:
    found = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
    if not found:
        near = ", ".join(name or "the model itself" for name in difflib.get_close_matches(pattern, convs, 3, 0))
        raise ValueError(f"where: {pattern!r} matches no module of the model; the nearest convolutions are {near}")
    for name, module in found.items():
        # A pack and its conv_offset get a message of their own.
        if not isinstance(module, (nn.Conv2d, DeformConv2dPack)):
            others = [other for other in found if other in convs]
            hint = "; give a callable (name, conv) -> bool, or patterns that match only convolutions" if others else ""
            raise ValueError(
                f"where: {pattern!r} matches {name}, which is a {type(module).__name__} and not an nn.Conv2d{hint}"
            )
    return found


def _by_default(model: nn.Module, convs: dict[str, nn.Conv2d]) -> dict[str, nn.Conv2d]:
    if isinstance(model, nn.Conv2d) and (obstacle := _obstacle(model)):
        raise ValueError(f"model: can't become deformable: {obstacle}")
    residual = [name for name, module in model.named_modules() if set(STAGES) <= dict(module.named_children()).keys()]
    stages = tuple(f"{name}.{stage}.".removeprefix(".") for name in residual for stage in STAGES[1:])
    spatial = {
        name: conv
        for name, conv in convs.items()
        if conv is model or (max(conv.kernel_size) > 1 and (not stages or name.startswith(stages)))
    }
    chosen = {name: conv for name, conv in spatial.items() if not _obstacle(conv)}
    if not chosen:
        scope = "layer2 to layer4" if stages else f"this {type(model).__name__}"
        why = [f"{name}, for example, can't become deformable: {_obstacle(conv)}" for name, conv in spatial.items()]
        why += ["what is deformable already is left alone, and 1x1 convolutions need a pattern"]
        raise ValueError(f"where: by default, {scope} has no convolution to replace: {why[0]}")
    return chosen


# What can be replaced


def _obstacle(module: nn.Module) -> str | None:
    """Why a pack can't take a module's place, or None if it can."""
    kind = type(module).__name__
    if isinstance(module, DeformConv2dPack):
        return f"it is a {kind} already"
    if not isinstance(module, nn.Conv2d):
        return f"it is a {kind}, not an nn.Conv2d"
    if parametrize.is_parametrized(module) or module._parameters.keys() != {"weight", "bias"}:
        return "its weight is computed from other parameters (weight norm, pruning, ...); make it a plain one first"
    if type(module) is not nn.Conv2d:
        return f"it is a {kind}, and what a subclass of nn.Conv2d does beyond it would be lost"
    if module._buffers or module._modules or "forward" in vars(module):
        return "it was given buffers, children or a forward of its own, which would be lost"
    if module.weight.dtype not in DTYPES:
        return f"its weight is {module.weight.dtype}; packs take float64, float32, bfloat16 or float16"
    if module.padding_mode != "zeros":
        return f"its padding_mode is {module.padding_mode!r}; packs pad with zeros"
    if _padding(module) is None:
        size = tuple(module.kernel_size)
        return (
            f"padding='same' with a kernel of {size} and dilation {module.dilation} pads one side more than the other"
        )
    if _has_hooks(module):
        return "it has hooks, which would be lost; remove them, and register them on the pack"
    return None


def _has_hooks(conv: nn.Conv2d) -> bool:
    # The bias stays the parameter it is, with its hooks.
    places = (
        vars(conv).items(),
        [(n, getattr(conv.weight, n, None)) for n in ("_backward_hooks", "_post_accumulate_grad_hooks")],
    )
    return any(name.endswith("_hooks") and bool(value) for place in places for name, value in place)


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on each side as numbers, or None where the two sides differ."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        total = [step * (side - 1) for step, side in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(n % 2 for n in total) else (total[0] // 2, total[1] // 2)
    return (int(conv.padding[0]), int(conv.padding[1]))


def _check_divides(deform_groups: int, chosen: dict[str, nn.Conv2d]) -> None:
    for name, conv in chosen.items():
        if conv.in_channels % deform_groups:
            raise ValueError(
                f"deform_groups: expected a divisor of the {conv.in_channels} input channels of {name or 'the model'}, "
                f"got {deform_groups}; choose other convolutions with where, or another number"
            )


def _check_ties(model: nn.Module, chosen: dict[str, nn.Conv2d]) -> None:
    """Doubling a weight takes it away from whoever else uses it: all its users must be chosen."""
    weights = {conv.weight: name for name, conv in chosen.items()}
    convs = set(chosen.values())
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter in weights and not (module in convs and leaf == "weight"):
                other = f"{path}.{leaf}".removeprefix(".")
                raise ValueError(
                    f"where: {weights[parameter]} can't become deformable: its weight, which must be doubled, is also "
                    f"{other}, which isn't chosen; choose both or neither, or give modulated=False"
                )


# The replacement


def _pack(
    conv: nn.Conv2d, modulated: bool, deform_groups: int, doubled: dict[Tensor, nn.Parameter]
) -> DeformConv2dPack:
    padding = _padding(conv)
    assert padding is not None  # noqa: S101 - for the type checker: _obstacle has seen to it
    # Made without memory: drawing weights that aren't wanted would move the caller's random numbers on.
    with torch.device("meta"):
        pack = (ModulatedDeformConv2dPack if modulated else DeformConv2dPack)(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # Conv2d keeps its pairs as tuples of any length
            conv.stride,  # type: ignore[arg-type]
            padding,
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            deform_groups,
            bias=conv.bias is not None,
        )
    weight = conv.weight
    if modulated:
        if weight not in doubled:
            doubled[weight] = nn.Parameter(2 * weight.detach(), requires_grad=weight.requires_grad)
        pack.weight = doubled[weight]
    else:
        pack.register_parameter("weight", conv._parameters["weight"])
    pack.register_parameter("bias", conv._parameters["bias"])
    predictor = pack.conv_offset.to(weight.dtype).to_empty(device=weight.device)
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        predictor.to(memory_format=torch.channels_last)
    for parameter in predictor.parameters():
        nn.init.zeros_(parameter)
    for name in vars(conv).keys() - ATTRIBUTES:
        setattr(pack, name, getattr(conv, name))
    return pack.train(conv.training)
