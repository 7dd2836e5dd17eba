"""``torchdcn eval``."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import console, verb
from .options import AMP, Amp, Device, Model, drawing, model_of, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..evaluation import Evaluation


@verb(
    "eval",
    example="torchdcn eval --data my/coco --weights runs/my/last.safetensors --out runs/my/eval",
)
def evaluate(
    data: Annotated[
        str, typer.Option(help="Folder with annotations/, train/ and val/; a YOLO or VOC folder; or 'synthetic'.")
    ],
    weights: Annotated[str, typer.Option(help="Weights file, or coco for the published ones.")],
    model: Model = None,
    split: Annotated[str, typer.Option(help="Part of the data to evaluate on.")] = "val",
    out: Annotated[Path | None, typer.Option(help="Folder that gets figures, detections and a picture.")] = None,
    min_size: Annotated[int | None, typer.Option(min=16, help="Short side; by default the weights' own.")] = None,
    device: Device = None,
    amp: Amp = "none",
    skip_bad_images: Annotated[bool, typer.Option(help="Leave out images that can't be read, and list them.")] = False,
    per_class: Annotated[bool, typer.Option(help="Show AP by class too.")] = True,
) -> None:
    """Evaluates weights on a data set: COCO box and mask AP."""
    from ..data import open_dataset
    from ..detector import Detector
    from ..evaluation import class_table, evaluations_of, metrics_table
    from ..files import make_folder
    from ..models import create_model
    from ..nn.layout import channels_last
    from ..training.device import choose_device
    from ..training.progress import counter
    from .evaluator import print_skipped

    one_of(amp, AMP, "--amp")
    model = model_of(model, weights, "eval")
    screen = console()
    with drawing(data, screen) as progress:  # in case it is the embedded data set, for the first time
        dataset = open_dataset(data, split, masks=False, progress=progress)  # the evaluator reads masks itself
    overrides: dict[str, Any] = {} if min_size is None else {"min_size": min_size}
    network = channels_last(create_model(model, weights=weights, **overrides))
    detector = Detector(network, device=choose_device(device), amp=amp)
    if out is not None:
        make_folder(out, "out")
    skipped: dict[int, str] = {}
    with counter(f"evaluating on {split}", screen) as progress:
        skip_bad = skipped.__setitem__ if skip_bad_images else None
        kinds, results = evaluations_of(detector, dataset, progress, skip_bad=skip_bad)
    print_skipped(skipped, len(dataset), screen)
    metrics = {kind: evaluation.metrics for kind, evaluation in kinds.items()}
    by_class = {kind: evaluation.per_class for kind, evaluation in kinds.items()}
    screen.print(metrics_table(metrics))
    if per_class:
        screen.print(class_table(by_class))
    if out is not None:
        _write(out / "metrics.json", json.dumps(metrics, indent=2))
        _write(out / "per_class.json", json.dumps(by_class, indent=2))
        _write(out / "results.json", json.dumps(results))
        _draw(out / "precision_recall.png", kinds)
        screen.print(
            f"In {out}: metrics.json and per_class.json, detections as results.json, curves as precision_recall.png",
            markup=False,
        )


def _write(path: Path, text: str) -> None:
    from ..files import write_atomically

    write_atomically(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def _draw(path: Path, kinds: Mapping[str, Evaluation]) -> None:
    from ..evaluation.coco import KINDS
    from ..files import write_atomically
    from ..plotting import encode_png, precision_recall

    curves = {KINDS[kind]: evaluation.precision for kind, evaluation in kinds.items()}
    names = list(next(iter(kinds.values())).per_class)
    picture = encode_png(precision_recall(curves, names))
    write_atomically(path, lambda file: file.write_bytes(picture))
