"""``torchdcn train``: its flags are the fields of ``TrainConfig``."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from ..training.config import RECIPES, TrainConfig
from .app import bad_usage, console, first_process, verb
from .words import said_as

if TYPE_CHECKING:
    from collections.abc import Mapping

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.", rich_help_panel="Run")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Train nothing: report all faults of the data set at once.", rich_help_panel="Run"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings of an earlier run, its config.json; other flags win.",
                 rich_help_panel="Run"),
]  # fmt: skip
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the model, as in fpn_channels=64; "
                 "`python -m pydoc torchdcn.models.settings.Settings` lists them.",
                 rich_help_panel="Images"),
]  # fmt: skip
LISTS = {"lr_drops": (float, "shares of the run such as 0.6,0.9"), "multi_scale": (int, "short sides such as 640,800")}


def _train(*, check: bool, config: Path | None, resume: bool, set_: list[str], **flags: Any) -> None:
    """Trains a detector on COCO-format data, from scratch by default, and evaluates it on val.

    Raises:
        typer.Exit: A flag's value is out of range, or ``check`` has found faults.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if check:
        _check(given, config)
        return
    try:
        settings = _settings(given, set_, None if config is None else TrainConfig.load(config))
    except ValueError as error:
        if config is not None and str(error).startswith((str(config), "config: ")):
            raise
        bad_usage(f"--{str(error).replace('_', '-', str(error).split(':')[0].count('_'))}")
    with said_as({name: f"--set {name}" for name in settings.overrides}):
        _run(settings, resume)


def _run(config: TrainConfig, resume: bool) -> None:
    from ..training import train
    from .evaluator import Evaluator

    out = console(quiet=not first_process())
    evaluator = Evaluator(config.data, "val", out, skip_bad=config.skip_bad_images)
    train(config, evaluator, resume=resume, console=out)
    evaluator.print_class_table()
    out.print(f"In {config.out}: last.safetensors, metrics.json, metrics.jsonl", markup=False)


def _settings(given: Mapping[str, Any], settings: list[str], saved: TrainConfig | None) -> TrainConfig:
    values: dict[str, Any] = dict(given)
    for name, (kind, example) in LISTS.items():
        if name in values:
            try:
                values[name] = tuple(kind(part) for part in values[name].split(",") if part.strip())
            except ValueError:
                raise ValueError(f"{name}: expected {example}, got {values[name]!r}") from None
    overrides = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name:
            raise ValueError(f"set: expected NAME=VALUE such as fpn_channels=64, got {setting!r}")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value  # text, which needs no quotes here
    if saved is not None:
        return saved.changed(**values, overrides={**saved.overrides, **overrides})
    missing = [name for name in ("data", "model", "out") if name not in values]
    if missing:
        bad_usage(f"Missing option '--{missing[0]}'. (see torchdcn train --help)")
    return TrainConfig(**values, overrides=overrides)


def _check(given: Mapping[str, Any], saved: Path | None) -> None:
    """Reports on the data set; 1 is the exit code if it has faults."""
    from ..data.check import check_folder
    from ..models.zoo import settings_of
    from ..training.progress import counter

    config = {} if saved is None else TrainConfig.load(saved).to_dict()
    data, model = (given.get(name, config.get(name)) for name in ("data", "model"))
    if data is None:
        bad_usage("Missing option '--data'. (see torchdcn train --help)")
    masks = settings_of(model).masks if model else None
    out = console()
    with counter("reading images", out) as progress:
        report = check_folder(data, progress=progress, masks=masks)
    for line in report.lines():
        out.print(line, markup=False, soft_wrap=True)
    if report.faults:
        raise typer.Exit(1)


def _parameters() -> list[inspect.Parameter]:
    """One option for each field of ``TrainConfig``.

    An option that is not given is None. So one that is given with its default value still wins over ``--config``.
    """
    hints = get_type_hints(TrainConfig)
    parameters = []
    for field in dataclasses.fields(TrainConfig):
        if field.name == "overrides":
            continue
        kind = str if field.name in LISTS else hints[field.name]
        option = typer.Option(
            *([f"--{field.name.replace('_', '-')}/--no-{field.name.replace('_', '-')}"] if kind is bool else []),
            help=" ".join(filter(None, (field.metadata["help"], _default(field)))),
            rich_help_panel=field.metadata["group"],
            show_default=False,  # typer would add brackets of its own
        )
        annotation: Any = Annotated[cast("Any", kind) | None, option]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    return parameters


def _needed(field: dataclasses.Field[Any]) -> bool:
    """Whether the setting has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> str:
    """The help text of a flag's default."""
    if _needed(field):
        return "Needed, if not in --config."
    return f"[dim]\\[default: {value}][/dim]" if (value := _value(field)) else ""


def _value(field: dataclasses.Field[Any]) -> str:
    """A flag's default in words; an empty text if its help has it already, or the default is nothing."""

    def text(value: Any) -> str:
        if value is None:
            return "the model's own"
        return ",".join(f"{v:.3g}" for v in value) if isinstance(value, tuple) else str(value)

    if isinstance(field.default, bool):
        return ""
    if any(recipe.get(field.name) is not None for recipe in RECIPES.values()):
        by_value: dict[str, list[str]] = {}
        for name, recipe in RECIPES.items():
            by_value.setdefault(text(recipe[field.name]), []).append(name)
        return "; ".join(f"{', '.join(names)}: {value}" for value, names in by_value.items())
    return "" if field.default in (None, ()) else text(field.default)


_train.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect reads it
    [
        *_parameters(),
        inspect.Parameter("set_", inspect.Parameter.KEYWORD_ONLY, default=[], annotation=Set),
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config),
        inspect.Parameter("resume", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Resume),
        inspect.Parameter("check", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Check),
    ]
)
verb(
    "train", example="torchdcn train --data my/coco --model mask_rcnn_r18_fpn_mdconv_c3-c5 --out runs/my --min-size 256"
)(_train)
