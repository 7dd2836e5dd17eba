"""``torchdcn eval``."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import Annotated, Any

import typer

from .app import console, verb


@verb(
    "eval",
    example="torchdcn eval --data my/coco --model mask_rcnn_r18_fpn --weights runs/my/last.safetensors --out runs/my",
)
def evaluate(
    data: Annotated[str, typer.Option(help="Folder with annotations/, train/ and val/; or 'synthetic'.")],
    model: Annotated[str, typer.Option(help="Name of the model, see `torchdcn models`.")],
    weights: Annotated[str, typer.Option(help="Weights file.")],
    split: Annotated[str, typer.Option(help="Part of the data to evaluate on.")] = "val",
    out: Annotated[Path | None, typer.Option(help="Folder that gets metrics.json and results.json.")] = None,
    min_size: Annotated[int | None, typer.Option(min=16, help="Short side; by default the weights' own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Show AP by class too.")] = False,
) -> None:
    """Evaluates weights on a data set: COCO box and mask AP."""
    from ..data import open_dataset
    from ..detector import Detector
    from ..evaluation import evaluate as evaluate_results
    from ..evaluation import evaluate_detector, metrics_table
    from ..models import create_model
    from ..training.device import choose_device
    from ..training.files import make_folder
    from ..training.progress import counter

    screen = console()
    with counter("drawing scenes", screen) as progress:  # in case it is the embedded data set, for the first time
        dataset = open_dataset(data, split, masks=False, progress=progress)  # the evaluator reads masks itself
    overrides: dict[str, Any] = {} if min_size is None else {"min_size": min_size}
    detector = Detector(create_model(model, weights=weights, **overrides), device=choose_device(device))
    if out is not None:
        make_folder(out, "out")
    with counter(f"evaluating on {split}", screen) as progress:
        metrics, results = evaluate_detector(detector, dataset, progress)
    by_class = None
    if per_class:
        kinds = evaluate_results(dataset.annotation_file, results, ["bbox", "segm"] if "segm" in metrics else ["bbox"])
        by_class = {kind: evaluation.per_class for kind, evaluation in kinds.items()}
    screen.print(metrics_table(metrics, by_class))
    if out is not None:
        _write(out / "metrics.json", json.dumps(metrics, indent=2))
        _write(out / "results.json", json.dumps(results))
        screen.print(f"Figures in {out / 'metrics.json'}, detections in {out / 'results.json'}", markup=False)


def _write(path: Path, text: str) -> None:
    from ..training.files import write_atomically

    write_atomically(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))
