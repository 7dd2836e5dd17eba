"""Everything that decides a training run, in one frozen dataclass whose fields are the command line's flags."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {
        "epochs": 12, "min_size": None, "max_size": None, "lr": 4e-4, "lr_batch": 0, "offset_lr_factor": 0.1,
        "weight_decay": 0.01, "warmup": 0.05, "warmup_steps": 0, "lr_drops": (0.75,), "clip": 5.0,
    },
    "1x": {
        "epochs": 12, "min_size": 800, "max_size": 1333, "lr": 0.02, "lr_batch": 16, "offset_lr_factor": 1.0,
        "weight_decay": 1e-4, "warmup": 0.0, "warmup_steps": 500, "lr_drops": (8 / 12, 11 / 12), "clip": 0.0,
    },
    "paper": {
        "epochs": 16, "min_size": 1000, "max_size": 1667, "lr": 0.02, "lr_batch": 16, "offset_lr_factor": 0.1,
        "weight_decay": 1e-4, "warmup": 0.0, "warmup_steps": 500, "lr_drops": (10 / 16, 14 / 16), "clip": 0.0,
    },
}  # fmt: skip
"""The defaults of each recipe: ours, mmdetection's 1x schedule, and that of arXiv 1811.11168."""
AMP = ("none", "bf16", "fp16")


def _flag(group: str, help: str, **arguments: Any) -> Any:
    """A field with the help text of its flag in ``torchdcn train --help``, and the group that lists it."""
    return field(metadata={"group": group, "help": help}, **arguments)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run: ``train(config)`` reads nothing else, and every run saves its own as ``config.json``.

    A field ``batch_size`` is the flag ``--batch-size``; ``overrides`` is ``--set NAME=VALUE``. A field of ``RECIPES``
    that is not given gets the recipe's value when the object is made. So ``dataclasses.replace(config, recipe=...)``
    keeps the values of the former recipe; :meth:`changed` takes those of the new one.

    Raises:
        ValueError: A value out of range; the message names the field.

    Example:
        >>> from torchdcn.training import TrainConfig
        >>> TrainConfig(data="synthetic", model="mask_rcnn_r18_fpn", out="runs/try", epochs=3).lr
        0.0004
    """

    data: str = _flag(
        "Run",
        "Folder with annotations/instances_{train,val}.json, train/ and val/; a YOLO or VOC folder; or 'synthetic'.",
    )
    model: str = _flag("Run", "Name of the model, see `torchdcn models`.")
    out: str = _flag("Run", "Folder of the run.")
    epochs: int = _flag("Run", "Passes over the training images.", default=None)
    batch_size: int = _flag("Run", "Images a step, in each process.", default=2)
    weights: str | None = _flag(
        "Run", "Weights file to start from, or coco for the published ones; by default from scratch.", default=None
    )
    weights_backbone: str | None = _flag("Run", "Weights of the backbone: imagenet, or a file.", default=None)
    seed: int = _flag("Run", "Of weights, shuffling, flips and sampling.", default=0)
    min_size: int | None = _flag("Images", "Short side in pixels.", default=None)
    max_size: int | None = _flag("Images", "Longest side in pixels.", default=None)
    multi_scale: tuple[int, ...] = _flag(
        "Images",
        "More short sides to draw from in training, as in 640,672,704; --min-size stays one of them.",
        default=(),
    )
    flip: float = _flag("Images", "Probability of a horizontal flip.", default=0.5)
    workers: int = _flag("Images", "Processes that load images.", default=2)
    skip_bad_images: bool = _flag("Images", "Go on without images that can't be read, and list them.", default=False)
    repeat_factor_threshold: float = _flag(
        "Images", "Classes on a smaller share of the images are seen more often; 0: all images alike.", default=0.0
    )
    recipe: str = _flag("Recipe", f"Optimiser and schedule: {', '.join(RECIPES)}.", default="scratch")
    lr: float = _flag("Recipe", "Highest learning rate.", default=None)
    lr_batch: int = _flag(
        "Recipe",
        "Images a step that --lr is for: it grows with those of all processes; 0: it is as given.",
        default=None,
    )
    offset_lr_factor: float = _flag("Recipe", "Learning rate of offset convolutions, times the others'.", default=None)
    weight_decay: float = _flag("Recipe", "Of weights; by scratch not of norms and biases.", default=None)
    warmup: float = _flag("Recipe", "Share of the run with a rising learning rate, 0 to 0.1.", default=None)
    warmup_steps: int = _flag("Recipe", "Steps in which it rises from 0.001 x, instead of --warmup.", default=None)
    lr_drops: tuple[float, ...] = _flag(
        "Recipe", "Shares of the run after which lr is divided by 10, as in 0.6,0.9.", default=None
    )
    clip: float = _flag("Recipe", "Largest norm of the gradient; 0 for no clipping.", default=None)
    mimic: bool = _flag("Recipe", "Add R-CNN feature mimicking; a step takes several times as long.", default=False)
    amp: str = _flag("Machine", f"Mixed precision: {', '.join(AMP)} (fp16 needs CUDA).", default="none")
    device: str | None = _flag("Machine", "cpu, cuda, cuda:1; by default CUDA where there is one.", default=None)
    eval_every: int = _flag("Machine", "Epochs between evaluations on val; 0: at the end only.", default=0)
    log_every: int = _flag("Machine", "Steps between lines of metrics.jsonl.", default=10)
    checkpoint_every: int = _flag("Machine", "Steps between checkpoints within an epoch.", default=500)
    overrides: dict[str, Any] = field(default_factory=dict)  # the model's other settings

    def __post_init__(self) -> None:
        self._fill_in()
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "recipe": (self.recipe in RECIPES, " or ".join(map(repr, RECIPES))),
            "lr": (0 < self.lr < float("inf"), "a positive number"),
            "lr_batch": (self.lr_batch >= 0, "0 or more"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup": (0 <= self.warmup <= 0.1, "a share of the run from 0 to 0.1"),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "lr_drops": (all(0 < d < 1 for d in self.lr_drops), "shares of the run between 0 and 1"),
            "clip": (self.clip >= 0, "0 or more"),
            "offset_lr_factor": (self.offset_lr_factor > 0, "a positive number"),
            "multi_scale": (all(s >= 16 for s in self.multi_scale), "short sides of at least 16 pixels"),
            "repeat_factor_threshold": (0 <= self.repeat_factor_threshold <= 1, "a share of the images from 0 to 1"),
            "min_size": (self.min_size is None or self.min_size >= 16, "at least 16 pixels"),
            "max_size": (self.max_size is None or self.max_size >= (self.min_size or 16), "at least min_size"),
            "flip": (0 <= self.flip <= 1, "a probability from 0 to 1"),
            "amp": (self.amp in AMP, " or ".join(map(repr, AMP))),
            "workers": (self.workers >= 0, "0 or more"),
            "eval_every": (self.eval_every >= 0, "0 or more"),
            "log_every": (self.log_every >= 1, "at least 1"),
            "checkpoint_every": (self.checkpoint_every >= 1, "at least 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def _fill_in(self) -> None:
        """Fills in the recipe's values for fields that are not given."""
        recipe = dict(RECIPES.get(self.recipe, RECIPES["scratch"]))  # __post_init__ refuses an unknown name later
        if self.warmup is not None:
            recipe["warmup_steps"] = 0  # warmup replaces it
        if self.max_size is None and recipe["max_size"] is not None:
            # In proportion to --min-size, and with room for the largest of --multi-scale.
            short, ratio = self.min_size or recipe["min_size"], recipe["max_size"] / recipe["min_size"]
            recipe["max_size"] = max(round(short * ratio), *self.multi_scale, short)
        for name, value in recipe.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("lr_drops", "multi_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def changed(self, **values: Any) -> TrainConfig:
        """A copy with some other values. With another recipe, values that the former one had set are the new one's.

        Example:
            >>> from torchdcn.training import TrainConfig
            >>> config = TrainConfig("synthetic", "mask_rcnn_r50_fpn", "runs/try", clip=1.0)
            >>> config.changed(recipe="1x").lr, config.changed(recipe="1x").clip
            (0.02, 1.0)
        """
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if values.get("recipe", self.recipe) != self.recipe:
            kept = {n: v for n, v in kept.items() if n not in RECIPES[self.recipe] or v != RECIPES[self.recipe][n]}
        if "warmup" in values:
            kept.pop("warmup_steps", None)
        return TrainConfig(**{**kept, **values})

    def model_settings(self) -> dict[str, Any]:
        """The model's settings that differ from the defaults of its name."""
        sizes: Any = self.min_size
        if self.multi_scale:
            last = self.min_size or max(self.multi_scale)  # evaluations use the last one
            sizes = (*(size for size in self.multi_scale if size != last), last)
        # The paper's own code freezes the scales and shifts of normalisation too; mmdetection's 1x trains them.
        norm = "frozen_bn" if self.recipe == "paper" and self.weights_backbone and not self.weights else None
        named = {"min_size": sizes, "max_size": self.max_size, "mimic": self.mimic or None, "norm": norm}
        return {n: value for n, value in named.items() if value is not None} | dict(self.overrides)

    def describe(self) -> str:
        """All settings as text, a line for each group of flags."""
        groups: dict[str, list[str]] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            shown = ",".join(f"{v:.4g}" for v in value) if isinstance(value, tuple) else str(value)
            if each.name != "overrides":
                groups.setdefault(each.metadata["group"], []).append(f"{each.name}={shown}")
        groups["Model"] = [f"{name}={value}" for name, value in self.overrides.items()]
        return "\n".join(f"  {name}: {' '.join(texts)}" for name, texts in groups.items() if texts)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))  # tuples become lists
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: A name is no field; the message has the nearest one.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if "offset_lr" in values:  # the former name of offset_lr_factor, in old runs
            values = {"offset_lr_factor" if name == "offset_lr" else name: value for name, value in values.items()}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(f"config: no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Writes the settings as JSON."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is not a settings file of a run.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: there is no such settings file")
        from ..data.text import read_json  # here, since it loads torchvision, which --help does not need

        values = read_json(Path(path))
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected an object with a run's settings, got {type(values).__name__}")
        try:
            return cls.from_dict(values)
        except TypeError as error:  # text in place of a number, or no data, model or out
            raise ValueError(f"{path}: not a run's settings ({error})") from error
