"""``torchdcn train``: its flags are the fields of ``TrainConfig``."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..training.config import TrainConfig
from .app import bad_usage, console, verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from torch import nn

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.", rich_help_panel="Run")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the model, as in fpn_channels=64.",
                 rich_help_panel="Images"),
]  # fmt: skip


def _train(*, resume: bool, set_: list[str], **flags: Any) -> None:
    """Trains a detector on COCO-format data, from scratch by default, and evaluates it on val.

    Raises:
        typer.Exit: A flag's value is out of range.
    """
    from ..training import train

    try:
        config = _config(flags, set_)
    except ValueError as error:
        bad_usage(f"--{str(error).replace('_', '-', str(error).split(':')[0].count('_'))}")
    out = console()
    train(config, Evaluator(config.data, "val", out), resume=resume, console=out)


def _config(flags: Mapping[str, Any], settings: list[str]) -> TrainConfig:
    try:
        drops = tuple(float(share) for share in flags["lr_drops"].split(",") if share.strip())
    except ValueError:
        raise ValueError(f"lr_drops: expected shares of the run such as 0.6,0.9, got {flags['lr_drops']!r}") from None
    overrides = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name:
            raise ValueError(f"set: expected NAME=VALUE such as fpn_channels=64, got {setting!r}")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value  # a word needs no quotes
    return TrainConfig(**{**flags, "lr_drops": drops}, overrides=overrides)


class Evaluator:
    """Evaluates a model on a split, with a progress bar and a table.

    The annotations are read now and held against the model before training (``check``), so that a fault in them doesn't
    end a run of hours. The images are read only when they are evaluated.
    """

    def __init__(self, data: str, split: str, out: Console) -> None:
        from ..data import open_dataset
        from ..training.progress import counter

        self.split, self.out = split, out
        with counter("drawing scenes", out) as progress:
            self.dataset = open_dataset(data, split, masks=False, progress=progress)

    def check(self, model: Any) -> None:
        """Compares the split with a model that has the training data's classes.

        Raises:
            ValueError: Its classes are not the model's, or it has no masks to judge the model's by.
        """
        from ..evaluation import check_fit

        dataset, known = self.dataset, dict(zip(model.class_names, model.category_ids, strict=True))
        for name, category_id in zip(dataset.class_names, dataset.category_ids, strict=True):
            if known.get(name) != category_id:
                trained = f"there with the id {known[name]}" if name in known else "not there"
                raise ValueError(
                    f"{dataset.annotation_file}: the class {name!r} (id {category_id}) is {trained} in the training"
                    " data; give all splits the same categories"
                )
        check_fit(None, model.settings.masks, dataset)

    def __call__(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """The figures, which it prints too."""
        from ..detector import Detector
        from ..evaluation import evaluate_detector, metrics_table
        from ..training.progress import counter

        with counter(f"evaluating on {self.split}", self.out) as progress:
            metrics, _ = evaluate_detector(Detector(model), self.dataset, progress)
        self.out.print(metrics_table(metrics))
        return metrics


def _parameters() -> list[inspect.Parameter]:
    """One option for each field of ``TrainConfig``: a flag can't be forgotten, and its help stands by its default."""
    hints = get_type_hints(TrainConfig)
    parameters = []
    for field in dataclasses.fields(TrainConfig):
        if field.name == "overrides":
            continue
        kind, default = hints[field.name], field.default
        if field.name == "lr_drops":
            kind, default = str, ",".join(map(str, TrainConfig.lr_drops))
        option = typer.Option(help=field.metadata["help"], rich_help_panel=field.metadata["group"])
        missing = default is dataclasses.MISSING
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if missing else default,
                annotation=Annotated[kind, option],
            )
        )
    return parameters


_train.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what inspect looks for
    [
        *_parameters(),
        inspect.Parameter("set_", inspect.Parameter.KEYWORD_ONLY, default=[], annotation=Set),
        inspect.Parameter("resume", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Resume),
    ]
)
verb(
    "train", example="torchdcn train --data my/coco --model mask_rcnn_r18_fpn_mdconv_c3-c5 --out runs/my --min-size 256"
)(_train)
