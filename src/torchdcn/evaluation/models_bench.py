"""How fast detectors are and how much memory training takes, beside the same ones without deformable layers.

Weights are random, so what depends on what they have learned is set: features are normalised by the picture's own
statistics, offsets come from N(0, 2) pixels, and the score threshold lets 300 pairs of box and class through. Models of
one kind run in turn, round after round, so their ratios hold where absolute times don't.
"""

from __future__ import annotations

import math
import statistics
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models import create_model
from ..models.zoo import settings_of
from ..nn import DeformConv2dPack
from ..nn.layout import channels_last
from .speed import measure_times, thread_count, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from ..models.rcnn import RCNN
    from ..models.settings import Settings

OFFSETS = 2.0  # standard deviation in pixels
CANDIDATES = 300  # pairs of box and class that reach the NMS
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Contender:
    """A model of the zoo, or with ``plain`` the same one with regular layers in place of deformable ones."""

    name: str
    plain: bool = False
    amp: str = "none"

    def __str__(self) -> str:
        return f"{self.name}, regular" if self.plain else self.name

    @property
    def overrides(self) -> dict[str, Any]:
        """What :func:`create_model` is told: the published recipe's frozen layers, regular ones if ``plain``."""
        found: dict[str, Any] = {"conv": None, "pool": None, "deform_groups": 1} if self.plain else {}
        if settings_of(self.name).backbone != "r18":  # which is ours, with GroupNorm, and trained from scratch
            found |= {"norm": "bn_eval", "trainable_backbone_layers": 3}
        return found

    @property
    def settings(self) -> Settings:
        """What it is made of."""
        return settings_of(self.name, **self.overrides)


@dataclass(frozen=True)
class Timed:
    """Contenders that ran in turn."""

    what: str  # "detection", "backbone forward" or "backbone forward + backward"
    amp: str
    plain: str  # the contender without deformable layers
    times: dict[str, list[float]]  # seconds of each round

    @property
    def seconds(self) -> dict[str, float]:
        """The median of each contender."""
        return {name: statistics.median(times) for name, times in self.times.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Over the one without deformable layers, in the same rounds."""
        return {name: seconds / self.seconds[self.plain] for name, seconds in self.seconds.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return asdict(self) | {"seconds": self.seconds, "x_regular": self.ratios}


@dataclass(frozen=True)
class Figures:
    """What :func:`bench_models` found."""

    groups: list[list[Contender]]  # of one kind each, the one without deformable layers first
    detection: list[Timed] = field(default_factory=list)  # for each group
    backbones: list[Timed] = field(default_factory=list)
    train_bytes: dict[Contender, int | None] = field(default_factory=dict)


def groups_of(names: Sequence[str], device: str = "cpu") -> list[list[Contender]]:
    """The models by what they would be without deformable layers, which leads each group.

    A name with ``fp16`` is for mixed precision: bf16 on the CPU.

    Raises:
        ValueError: There is no such model.

    Example:
        >>> from torchdcn.evaluation.models_bench import groups_of
        >>> [str(one) for one in groups_of(["mask_rcnn_r50_fpn_mdconv_c3-c5"])[0]]
        ['mask_rcnn_r50_fpn', 'mask_rcnn_r50_fpn_mdconv_c3-c5']
    """
    found: dict[tuple[Settings, str], list[Contender]] = {}
    for name in dict.fromkeys(names):
        amp = ("bf16" if device == "cpu" else "fp16") if "fp16" in name else "none"
        plain = Contender(name, True, amp)
        group = found.setdefault((plain.settings, amp), [plain])
        if Contender(name, amp=amp).settings != plain.settings:
            group.append(Contender(name, amp=amp))
    return [[_by_its_name(group[0]), *group[1:]] for group in found.values()]


def _by_its_name(plain: Contender) -> Contender:
    """The same model under the name that the zoo has for it, if any."""
    start = plain.name.split("_fpn")[0]
    named = Contender(f"{start}_fpn", amp=plain.amp)
    try:
        return named if named.settings == plain.settings else plain
    except ValueError:
        return plain


def build(contender: Contender, size: tuple[int, int], device: str = "cpu") -> RCNN:
    """A model in training mode, for images of that height and width; channels-last on the CPU."""
    torch.manual_seed(0)
    overrides = contender.overrides | {"min_size": min(size), "max_size": max(size)}
    model = create_model(contender.name, **overrides)
    model.to(device)
    return channels_last(model) if device == "cpu" else model


def draw_image(size: tuple[int, int], device: str = "cpu") -> Tensor:  # [1, 3, H, W]
    """Noise in 0..1, channels-last."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *size, 3, generator=generator).permute(0, 3, 1, 2)
    return image.to(device)


def settle(backbone: nn.Module, image: Tensor) -> None:
    """Gives random weights what training would: normalised features, and offsets of some pixels."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.training, norm.momentum) for norm in norms]
    packs = [module for module in backbone.modules() if isinstance(module, DeformConv2dPack)]
    hooks = [pack.register_forward_pre_hook(_spread) for pack in packs]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        backbone(image)
    for norm, (training, momentum) in zip(norms, before, strict=True):
        norm.train(training)
        norm.momentum = momentum
    for hook in hooks:
        hook.remove()


def _spread(pack: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    weight = pack.get_parameter("conv_offset.weight")
    scale = float(inputs[0].square().mean().sqrt()) * math.sqrt(weight[0].numel())
    nn.init.normal_(weight, std=OFFSETS / max(scale, 1e-12))


def _limit_candidates(model: RCNN, image: Tensor) -> None:
    """Sets the score threshold so that as many pairs of box and class exceed it as in a picture full of objects."""
    seen: list[Tensor] = []
    heads: Any = model.roi_heads
    hook = heads.box_predictor.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    heads.score_thresh = 1.0
    with torch.inference_mode():
        model([image[0]])
    hook.remove()
    scores = seen[0].softmax(dim=1)[:, 1:].flatten()  # the background comes first
    heads.score_thresh = float(scores.topk(min(CANDIDATES, len(scores))).values[-1])


def detection_call(contender: Contender, size: tuple[int, int], device: str = "cpu") -> Callable[[], Any]:
    """From a resized picture to boxes, scores, labels and masks at its size; a batch of one."""
    model, image = build(contender, size, device).eval(), draw_image(size, device)
    settle(model.backbone, image)
    _limit_candidates(model, image)

    def detect() -> Any:
        with torch.inference_mode(), _autocast(contender.amp, device):
            return model([image[0]], original_sizes=[size], mask_threshold=0.5)[0]

    return detect


def backbone_call(
    contender: Contender, size: tuple[int, int], training: bool, device: str = "cpu"
) -> Callable[[], Any]:
    """An image to its feature maps; with ``training`` also to the gradients of all weights that train."""
    backbone, image = build(contender, size, device).backbone, draw_image(size, device)
    settle(backbone, image)
    if not training:
        backbone.eval()

        def forward() -> Any:
            with torch.inference_mode(), _autocast(contender.amp, device):
                return backbone(image)

        return forward
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]

    def step() -> Any:
        with _autocast(contender.amp, device):
            maps = list(backbone(image).values())
        return torch.autograd.grad(maps, parameters, [torch.ones_like(one) for one in maps])

    return step


def _autocast(amp: str, device: str) -> AbstractContextManager[Any]:
    dtype = AMP[amp]
    return torch.autocast(torch.device(device).type, dtype) if dtype else nullcontext()


def bench_models(
    names: Sequence[str],
    *,
    size: tuple[int, int] = (800, 1344),
    rounds: int = 5,
    train: bool = True,
    batch: int = 2,
    threads: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> Figures:
    """Times detection, backbones and their training step, and measures the memory of a detector's training step.

    Args:
        names: Models of the zoo; each runs beside what it would be without deformable layers.
        size: Height and width of the picture, as the network sees it.
        rounds: See :func:`~torchdcn.evaluation.speed.measure_times`.
        train: Whether to measure training too.
        batch: Pictures of the training step whose memory is measured.
        threads: Of torch; by default its present number.
        device: ``"cpu"`` or a CUDA device.
        progress: Called with (done, in all).

    Raises:
        ValueError: There is no such model, or no rounds.

    Example:
        >>> from torchdcn.evaluation.models_bench import bench_models
        >>> names = ["faster_rcnn_r18_fpn_mdconv_c3-c5"]
        >>> found = bench_models(names, size=(64, 96), rounds=1, train=False)
        >>> sorted(found.detection[0].ratios)
        ['faster_rcnn_r18_fpn', 'faster_rcnn_r18_fpn_mdconv_c3-c5']
    """
    from .models_memory import training_memory

    groups = groups_of(names, device)
    kinds = _backbones([contender for group in groups for contender in group])
    passes = (False, True) if train else (False,)
    contenders = [contender for group in groups for contender in group] if train else []
    total = len(groups) + len(passes) * len(kinds) + len(contenders)
    figures = Figures(groups)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    threads = threads or torch.get_num_threads()
    with thread_count(threads):
        for group in groups:
            calls = {str(one): detection_call(one, size, device) for one in group}
            figures.detection.append(_timed("detection", group[0].amp, calls, rounds, device))
            advance()
        for kind in kinds:
            for training in passes:
                calls = {label: backbone_call(one, size, training, device) for label, one in kind.items()}
                what = "backbone forward + backward" if training else "backbone forward"
                amp = next(iter(kind.values())).amp
                figures.backbones.append(_timed(what, amp, calls, rounds, device))
                advance()
    for contender in contenders:
        figures.train_bytes[contender] = training_memory(contender, size, batch, threads, device)
        advance()
    return figures


def _timed(what: str, amp: str, calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> Timed:
    return Timed(what, amp, next(iter(calls)), measure_times(calls, rounds, wait_for(torch.device(device))))


def _backbones(contenders: Sequence[Contender]) -> list[dict[str, Contender]]:
    """The different backbones by what they would be without deformable layers, which comes first, with labels."""
    heads: dict[str, Any] = {"masks": False, "pool": None, "pool_masks": False}
    kinds: dict[tuple[Settings, str], dict[Settings, Contender]] = {}
    for contender in contenders:
        regular = Contender(contender.name, True, contender.amp)
        kind = kinds.setdefault((replace(regular.settings, **heads), contender.amp), {})
        for one in (regular, contender):
            kind.setdefault(replace(one.settings, **heads), one)
    return [{_label(one): one for one in kind.values()} for kind in kinds.values() if len(kind) > 1]


def _label(contender: Contender) -> str:
    settings = contender.settings
    name = settings.backbone.replace("r", "R", 1).replace("x101", "X101") + ("-FPN" if settings.fpn else "")
    if settings.conv is None:
        return f"{name}, regular"
    stages = f"{settings.deform_stages[0]}-{settings.deform_stages[-1]}"
    groups = f", {settings.deform_groups} groups" if settings.deform_groups > 1 else ""
    return f"{name}, {settings.conv} {stages}{groups}"
