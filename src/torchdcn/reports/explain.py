"""The files of ``torchdcn explain``: pictures, ``explain.json``, and a page with all of it."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from ..plotting import Support, figure_bytes, support_figure
from ..plotting.support import KINDS
from .page import embed_image, write_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ..analysis import Explanation, Node, SupportSummary

STEMS = {"sampling": "sampling", "field": "receptive-field", "region": "saliency"}
"""Names of the picture files, without their suffixes. The file "support" has all three kinds."""
FILES = [*(f"{stem}.{kind}" for stem in (*STEMS.values(), "support") for kind in ("png", "svg"))]
FILES += ["explain.json", "report.html"]
"""All files that are written."""
ROWS = {"sampling": "sampling locations", "field": "receptive field", "region": "saliency region"}


@dataclass(frozen=True, eq=False)  # holds tensors
class ExplainedNetwork:
    """A network, and what its node depends on.

    Attributes:
        model: Its name.
        weights: Its weights' file, or None for random ones.
        explanation: With all three supports.
    """

    model: str
    weights: str | None
    explanation: Explanation

    def to_json(self) -> dict[str, Any]:
        """For ``explain.json``."""
        return {"model": self.model, "weights": self.weights, **self.explanation.to_json()}


def write_explain_report(
    folder: Path, image: str, picture: NDArray[np.uint8], networks: Sequence[ExplainedNetwork]
) -> None:
    """Writes :data:`FILES`.

    Args:
        folder: The folder, which exists.
        image: The picture's name.
        picture: ``[H, W, 3]`` uint8.
        networks: All of them with the same bound of the region.
    """
    names = number_names([network.model for network in networks])
    supports = [to_support(network.explanation, name) for network, name in zip(networks, names, strict=True)]
    figures = {kind: support_figure(picture, supports, [kind]) for kind in KINDS}
    shown = {}
    for kind, figure in (*figures.items(), ("support", support_figure(picture, supports))):
        files = {suffix: figure_bytes(figure, suffix) for suffix in ("png", "svg")}
        for suffix, content in files.items():
            write_atomically(folder / f"{STEMS.get(kind, kind)}.{suffix}", partial(_write_bytes, content=content))
        shown[kind] = files["png"]
    bound = networks[0].explanation.bound
    numbers = {"image": image, "bound": bound, "networks": [network.to_json() for network in networks]}
    text = json.dumps(numbers, indent=2) + "\n"
    write_atomically(folder / "explain.json", lambda file: file.write_text(text, encoding="utf-8"))
    named = list(zip(names, networks, strict=True))
    values = {
        "image": html.escape(image),
        "nodes": "<br>".join(_describe(name, network) for name, network in named),
        "bound": f"{bound:g}",
        "rows": "".join(_row(name, network.explanation, kind) for name, network in named for kind in KINDS),
        **{kind: embed_image(shown[kind], "png", title) for kind, title in KINDS.items()},
    }
    write_page(folder / "report.html", "explain", f"What the network looked at: {image}", values)


def _write_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def number_names(names: Sequence[str]) -> list[str]:
    """Names for the reader: those that occur several times are numbered.

    Example:
        >>> from torchdcn.reports.explain import number_names
        >>> number_names(["a", "b", "a"])
        ['a (1)', 'b', 'a (3)']
    """
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]


def to_support(explanation: Explanation, name: str) -> Support:
    """An explanation as plain arrays for figures, with a line of numbers under each picture.

    Raises:
        ValueError: It has not all three supports.
    """
    sampling, field, region = explanation.sampling, explanation.field, explanation.region
    if sampling is None or field is None or region is None:
        raise ValueError(f"explanation: expected {', '.join(KINDS)}, got {', '.join(explanation.summaries)}")
    return Support(
        name=name,
        centre=field.centre.numpy(),
        points=sampling.points.numpy(),
        strengths=sampling.strengths.numpy(),
        field=field.map.numpy(),
        region=region.mask.numpy(),
        fill=region.fill.numpy(),
        box=explanation.node.roi,
        outline=None if explanation.object is None else explanation.object.mask(),
        notes={kind: _note(explanation, kind, summary) for kind, summary in explanation.summaries.items()},
    )


def _note(explanation: Explanation, kind: str, summary: SupportSummary | None) -> str:
    region = explanation.region if kind == "region" else None
    if summary is None:
        return "none" if region is None else f"nothing has to be kept, error {region.error:.2f}"
    parts = [] if summary.inside is None else [f"{summary.inside:.0%} on the object"]
    if region is None:
        parts.append(f"spread {summary.radius:.0f} px, {summary.entropy:.1f} bits")
    else:
        parts.append(f"{region.area:.1%} of the image, error {region.error:.2f}")
    return " · ".join(parts)


def _describe(name: str, network: ExplainedNetwork) -> str:
    found = network.explanation.object
    weights = html.escape(network.weights or "random weights")
    text = _place(network.explanation.node) + (f"; it detects: {found}" if found else "")
    return f"<b>{html.escape(name)}</b> ({weights}): {html.escape(text)}"


def _place(node: Node) -> str:
    if node.roi is not None:
        return "the box " + ", ".join(f"{value:g}" for value in node.roi)
    return f"row {node.y}, column {node.x} of {node.layer}"


def _row(name: str, explanation: Explanation, kind: str) -> str:
    summary = explanation.summaries[kind]
    region = explanation.region if kind == "region" else None
    area, error = (f"{region.area:.2%}", f"{region.error:.3f}") if region else ("", "")
    if summary is None:
        figures = ["nothing has to be kept" if region else "none", "", ""]
    else:
        inside = "–" if summary.inside is None else f"{summary.inside:.1%}"
        figures = [inside, f"{summary.radius:.1f}", f"{summary.entropy:.2f}"]
    cells = "".join(f"<td>{cell}</td>" for cell in (ROWS[kind], *figures, area, error))
    return f"<tr><th scope=row>{html.escape(name)}</th>{cells}</tr>"
