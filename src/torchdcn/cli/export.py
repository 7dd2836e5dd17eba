"""``torchdcn export``."""

from __future__ import annotations

import re
import warnings
from pathlib import Path  # noqa: TC003  # typer reads the annotations when it runs
from typing import Annotated, Any

import typer

from .app import bad_usage, console, verb
from .options import Model, Weights, model_of
from .words import said_as


@verb(
    "export",
    example="torchdcn export detector.onnx --model mask_rcnn_r18_fpn_mdconv_c3-c5 --weights runs/my/last.safetensors",
)
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="File to write; its folder exists.")],
    model: Model = None,
    weights: Weights = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Height and width of all pictures, such as 480x640; by default any."),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(min=16, help="Short side that pictures are resized to; by default the weights' own.")
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detections must score more; by default the weights' own.")
    ] = None,
) -> None:
    """Writes a detector as an ONNX file of standard operators, which runs without PyTorch and without torchdcn."""
    import torch

    from ..interop import export_onnx
    from ..models import create_model

    height, width = (64, 64) if size is None else _size(size)
    model = model_of(model, weights, "export")
    overrides: dict[str, Any] = {"min_size": min_size, "box_score_thresh": score_threshold}
    network = create_model(model, weights=weights, **{k: v for k, v in overrides.items() if v is not None})
    if weights is None:
        warnings.warn(f"{model} has random weights, so its detections mean nothing; give --weights", stacklevel=2)
    screen = console()
    screen.print(f"Tracing {model}, which takes a minute or two")
    with said_as({"path": "OUT.onnx"}):
        export_onnx(network, out, torch.zeros(3, height, width), dynamic=size is None)
    shape = "[3, height, width]" if size is None else f"[3, {height}, {width}]"
    results = "boxes, scores, labels" + (", masks" if network.settings.masks else "")
    megabytes = out.stat().st_size / 1e6
    screen.print(f"{out} ({megabytes:.1f} MB): image {shape} -> {results}", markup=False, soft_wrap=True)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not int(match[1]) or not int(match[2]):
        bad_usage(
            f"--size: expected HEIGHTxWIDTH in pixels, such as 480x640, got {text!r} (see torchdcn export --help)"
        )
    return int(match[1]), int(match[2])
