"""Everything that decides a training run, in one frozen dataclass whose fields are the command line's flags."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPES = ("scratch",)
AMP = ("none", "bf16", "fp16")


def _flag(group: str, help: str, **arguments: Any) -> Any:
    """A field with what ``torchdcn train --help`` shows for its flag: a text, and the group it stands in."""
    return field(metadata={"group": group, "help": help}, **arguments)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run: ``train(config)`` reads nothing else, and every run saves its own as ``config.json``.

    A field ``batch_size`` is the flag ``--batch-size``; ``overrides`` is ``--set NAME=VALUE``.

    Raises:
        ValueError: A value out of range; the message names the field.

    Example:
        >>> from torchdcn.training import TrainConfig
        >>> TrainConfig(data="synthetic", model="mask_rcnn_r18_fpn", out="runs/try", epochs=3).lr
        0.0004
    """

    data: str = _flag("Run", "Folder with annotations/instances_{train,val}.json, train/ and val/; or 'synthetic'.")
    model: str = _flag("Run", "Name of the model, see `torchdcn models`.")
    out: str = _flag("Run", "Folder of the run.")
    epochs: int = _flag("Run", "Passes over the training images.", default=12)
    batch_size: int = _flag("Run", "Images a step.", default=2)
    weights: str | None = _flag("Run", "Weights file to start from; by default from scratch.", default=None)
    weights_backbone: str | None = _flag("Run", "Weights of the backbone: imagenet, or a file.", default=None)
    seed: int = _flag("Run", "Of weights, shuffling, flips and sampling.", default=0)
    min_size: int | None = _flag("Images", "Short side in pixels; by default the model's own.", default=None)
    max_size: int | None = _flag("Images", "Longest side in pixels; by default the model's own.", default=None)
    flip: float = _flag("Images", "Probability of a horizontal flip.", default=0.5)
    workers: int = _flag("Images", "Processes that load images.", default=2)
    recipe: str = _flag("Recipe", f"Optimiser and schedule: {', '.join(RECIPES)}.", default="scratch")
    lr: float = _flag("Recipe", "Highest learning rate.", default=4e-4)
    offset_lr: float = _flag("Recipe", "Learning rate of offset convolutions, times the others'.", default=0.1)
    weight_decay: float = _flag("Recipe", "Of weights; norms and biases get none.", default=0.01)
    warmup: float = _flag("Recipe", "Share of the run with a rising learning rate, 0 to 0.1.", default=0.05)
    lr_drops: tuple[float, ...] = _flag(
        "Recipe", "Shares of the run after which lr is divided by 10, as in 0.6,0.9.", default=(0.75,)
    )
    clip: float = _flag("Recipe", "Largest norm of the gradient; 0 for no clipping.", default=5.0)
    amp: str = _flag("Machine", f"Mixed precision: {', '.join(AMP)} (fp16 needs CUDA).", default="none")
    device: str | None = _flag("Machine", "cpu, cuda, cuda:1; by default CUDA where there is one.", default=None)
    eval_every: int = _flag("Machine", "Epochs between evaluations on val; 0: at the end only.", default=0)
    log_every: int = _flag("Machine", "Steps between lines of metrics.jsonl.", default=10)
    checkpoint_every: int = _flag("Machine", "Steps between checkpoints within an epoch.", default=500)
    overrides: dict[str, Any] = field(default_factory=dict)  # the model's other settings

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr_drops", tuple(self.lr_drops))
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "recipe": (self.recipe in RECIPES, " or ".join(map(repr, RECIPES))),
            "lr": (0 < self.lr < float("inf"), "a positive number"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup": (0 <= self.warmup <= 0.1, "a share of the run from 0 to 0.1"),
            "lr_drops": (all(0 < d < 1 for d in self.lr_drops), "shares of the run between 0 and 1"),
            "clip": (self.clip >= 0, "0 or more"),
            "offset_lr": (self.offset_lr > 0, "a positive number"),
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

    def model_settings(self) -> dict[str, Any]:
        """The model's settings that differ from its name's."""
        named = {n: getattr(self, n) for n in ("min_size", "max_size")}
        return {n: value for n, value in named.items() if value is not None} | dict(self.overrides)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self) | {"lr_drops": list(self.lr_drops), "overrides": dict(self.overrides)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: A name that is no field, with the nearest one that is.
        """
        known = [f.name for f in dataclasses.fields(cls)]
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
            ValueError: Not a settings file of ours.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not a JSON file ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected an object with a run's settings, got {type(values).__name__}")
        return cls.from_dict(values)
