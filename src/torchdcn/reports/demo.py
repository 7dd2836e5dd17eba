"""The report of ``torchdcn demo``."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from .page import embed_image, write_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, eq=False)  # holds an array
class CaptionedPicture:
    """A picture with its caption, and its description for those who don't see it."""

    picture: NDArray[np.uint8]
    caption: str
    description: str


@dataclass(frozen=True, eq=False)
class DemoReport:
    """What the report shows; see :func:`torchdcn.demo.run_demo`."""

    model: str
    settings: Mapping[str, Any]
    metrics: Figures
    per_class: Mapping[str, Figures]
    detections: Sequence[CaptionedPicture]
    sampling: Sequence[CaptionedPicture]
    loss: NDArray[np.uint8]
    seconds: float
    training_seconds: float
    machine: str
    weights: Path


def write_demo_report(path: Path, report: DemoReport) -> None:
    """Writes the report."""
    settings = report.settings
    values: dict[str, object] = {
        "model": html.escape(report.model),
        "train": settings["train"],
        "val": settings["val"],
        "size": settings["size"],
        "epochs": settings["epochs"],
        "machine": html.escape(report.machine),
        "training": _duration(report.training_seconds),
        "total": _duration(report.seconds),
        "tiles": _tiles(report.metrics),
        "detections": "".join(_figure(item, "jpeg") for item in report.detections),
        "sampling": "".join(_figure(item, "jpeg") for item in report.sampling),
        "loss": _image(report.loss, "png", "Training loss over the steps", "chart"),
        "classes": _class_table(report.per_class),
        "weights": html.escape(str(report.weights)),
        "pictures": len(report.detections),
    }
    write_page(path, "demo", "torchdcn demo", values)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _percent(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"


def _tiles(metrics: Figures) -> str:
    shown = [
        ("bbox", "AP50", "box AP50"),
        ("segm", "AP50", "mask AP50"),
        ("bbox", "AP", "box AP"),
        ("segm", "AP", "mask AP"),
    ]
    return "".join(
        f'<div class="tile"><b>{_percent(metrics[kind].get(name))}</b><span>{label}</span></div>'
        for kind, name, label in shown
        if kind in metrics
    )


def _class_table(per_class: Mapping[str, Figures]) -> str:
    rows = []
    for name, boxes in per_class.get("bbox", {}).items():
        masks = per_class.get("segm", {}).get(name, {})
        figures = [boxes.get("AP"), boxes.get("AP50"), masks.get("AP"), masks.get("AP50")]
        cells = "".join(f"<td>{_percent(value)}</td>" for value in figures)
        rows.append(f"<tr><th scope=row>{html.escape(name)}</th><td>{boxes.get('objects', 0):.0f}</td>{cells}</tr>")
    return "".join(rows)


def _figure(item: CaptionedPicture, kind: str) -> str:
    caption = f"<figcaption>{html.escape(item.caption)}</figcaption>"
    return f"<figure>{_image(item.picture, kind, item.description)}{caption}</figure>"


def _image(picture: NDArray[np.uint8], kind: str, description: str, name: str = "") -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind, **({"quality": 90} if kind == "jpeg" else {"optimize": True}))
    height, width = picture.shape[:2]
    return embed_image(buffer.getvalue(), kind, description, f'class="{name}" width={width} height={height}')
