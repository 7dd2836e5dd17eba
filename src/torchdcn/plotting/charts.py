"""Curves: losses over steps, precision over recall."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .canvas import PALETTE, rendered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from .canvas import Picture

_CHART_COLORS = [PALETTE[i] for i in (6, 3, 4, 0, 5, 1)]  # dark ones first: thin lines on white


def loss_curve(
    steps: ArrayLike,
    losses: Mapping[str, ArrayLike],
    *,
    smoothing: int | None = None,
    title: str = "",
    marks: Mapping[str, float] | None = None,
    size: tuple[int, int] = (900, 480),
) -> Picture:
    """Losses over training steps: each as measured, faint, and as a running median, strong; named at its end.

    Args:
        steps: ``[T]``.
        losses: Name to ``[T]``; the first is drawn strongest (the sum, say). Values that are not finite are left out.
        smoothing: Steps of the running median; by default a twentieth of all.
        title: A line above.
        marks: Name to the step of a dashed vertical line, where the learning rate falls, say.
        size: Width and height in pixels.

    Returns:
        ``[height, width, 3]`` uint8.

    Raises:
        ValueError: A loss has not as many values as there are steps.

    Example:
        >>> from torchdcn.plotting import loss_curve
        >>> loss_curve([0, 1, 2], {"loss": [3.0, 2.0, 1.5]}).shape
        (480, 900, 3)
    """
    at = np.asarray(steps, float).reshape(-1)
    figure, axes = _chart(size, title)
    ends: list[tuple[float, str, tuple[float, ...]]] = []
    window = smoothing or max(1, len(at) // 20)
    tops = []
    for index, (name, values) in enumerate(losses.items()):
        loss = np.asarray(values, float).reshape(-1)
        if len(loss) != len(at):
            raise ValueError(f"losses: expected {len(at)} values for {name!r}, one for each step, got {len(loss)}")
        good = np.isfinite(loss)
        if not good.any():
            continue
        color = (0.0, 0.0, 0.0) if index == 0 else tuple(c / 255 for c in _CHART_COLORS[(index - 1) % 6])
        smooth = _running_median(loss[good], window)
        axes.plot(at[good], loss[good], color=color, alpha=0.22, lw=0.9)
        axes.plot(at[good], smooth, color=color, lw=2.2 if index == 0 else 1.6)
        ends.append((float(smooth[-1]), name, color))
        tops.append(float(np.quantile(loss[good], 0.995)))
    for name, step in (marks or {}).items():
        axes.axvline(step, color="#888888", lw=1, ls="--", zorder=0)
        axes.text(step, 1, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=9, color="#555555")
    axes.set_ylim(0, 1.08 * max(tops, default=1) or 1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    _name_ends(axes, ends)
    return rendered(figure)


def precision_recall(precision: Mapping[str, ArrayLike], class_names: Sequence[str], *, title: str = "") -> Picture:
    """Precision over recall: a column for each kind of overlap; the area under a line is what stands beside it.

    Above, the mean of all classes for several overlaps (IoU) from which a detection counts, and in black the mean of
    all ten: COCO's AP. Below, for two to six classes, each at IoU 0.5.

    Args:
        precision: What the columns are called ("boxes", "masks") to ``[10, 101, classes]`` as
            :class:`torchdcn.evaluation.Evaluation` has it; classes of -1 are left out.
        class_names: Names of the classes.
        title: A line above.

    Returns:
        ``[height, width, 3]`` uint8; a column is 810 pixels wide, a row 600 high.

    Raises:
        ValueError: Nothing given, or not as many classes as names.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import precision_recall
        >>> precision_recall({"boxes": np.ones((10, 101, 1))}, ["cat"]).shape
        (600, 810, 3)
    """
    from matplotlib.figure import Figure

    kinds = {name: np.asarray(values, float) for name, values in precision.items()}
    if not kinds or any(values.shape != (10, 101, len(class_names)) for values in kinds.values()):
        got = {name: list(values.shape) for name, values in kinds.items()}
        raise ValueError(f"precision: expected arrays [10, 101, {len(class_names)}] by name, got {got}")
    measured = {
        kind: [i for i in range(len(class_names)) if values[:, :, i].min() >= 0] for kind, values in kinds.items()
    }
    by_class = any(1 < len(classes) <= len(_CHART_COLORS) for classes in measured.values())
    rows = 2 if by_class else 1
    figure = Figure(figsize=(5.4 * len(kinds), 4 * rows), dpi=150, facecolor="white", layout="constrained")
    grid = figure.subplots(rows, len(kinds), squeeze=False)
    for column, (kind, values) in enumerate(kinds.items()):
        curves = values[:, :, measured[kind]]
        _overlap_curves(grid[0, column], curves)
        grid[0, column].set_title(_title(kind, curves.shape[2]), loc="left", fontsize=11)
        if by_class:
            _class_curves(grid[1, column], curves[0], [class_names[i] for i in measured[kind]])
            grid[1, column].set_title(f"{kind}, by class at IoU 0.50", loc="left", fontsize=11)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return rendered(figure)


def _title(kind: str, classes: int) -> str:
    return f"{kind}: nothing to find" if not classes else f"{kind}, mean of {classes} classes" if classes > 1 else kind


def _overlap_curves(axes: Axes, curves: NDArray[np.float64]) -> None:  # [10, 101, classes]
    from matplotlib import colormaps

    lines: dict[str, tuple[NDArray[np.float64], object, float]] = {}
    if curves.size:
        for i in range(0, 10, 2):
            lines[f"{0.5 + 0.05 * i:.2f}"] = curves[i].mean(axis=1), colormaps["viridis"](i / 10), 1.5
        lines["mean"] = curves.mean(axis=(0, 2)), "black", 2.4
    _curves(axes, lines, "AP    at IoU")


def _class_curves(axes: Axes, curves: NDArray[np.float64], names: list[str]) -> None:  # [101, classes]
    best_first = np.argsort(-curves.mean(axis=0), kind="stable")
    colors = [[c / 255 for c in color] for color in _CHART_COLORS]
    # The same colour for a class in every column.
    lines = {names[i]: (curves[:, i], colors[i], 1.8) for i in best_first}
    _curves(axes, lines, "AP50  class")


def _curves(axes: Axes, lines: Mapping[str, tuple[NDArray[np.float64], object, float]], heading: str) -> None:
    """Lines of precision at recall 0, 0.01, .., 1, with the means beside their names."""
    recall = np.linspace(0, 1, 101)
    for name, (values, color, width) in lines.items():
        reached = np.flatnonzero(values)
        end = int(reached[-1]) + 2 if len(reached) else 1  # down to 0 where no more is found, and not along it
        area = f"{100 * values.mean():4.1f}".replace(" ", "\u2007")  # a blank as wide as a digit
        axes.plot(recall[:end], values[:end], color=color, lw=width, label=f"{area}  {name}", solid_joinstyle="round")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    _plain(axes)
    if lines:
        axes.legend(
            frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0, title=heading,
            title_fontsize=9, alignment="left", handlelength=1.4,
        )  # fmt: skip


def _chart(size: tuple[int, int], title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _plain(axes)
    if title:
        axes.set_title(title, loc="left", fontsize=12)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.8)
    axes.set_axisbelow(True)


def _running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Over windows centred on each value, cut off at the ends."""
    half = window // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _name_ends(axes: Axes, ends: list[tuple[float, str, tuple[float, ...]]]) -> None:
    """Names at the right ends of lines, moved apart where they would overlap."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) / 22
    level = -math.inf
    for value, name, color in sorted(ends):
        level = max(value, level + gap)
        axes.annotate(
            f"{name} {value:.3g}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
