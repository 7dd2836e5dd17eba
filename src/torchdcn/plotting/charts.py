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


def precision_recall(precision: ArrayLike, class_names: Sequence[str], *, title: str = "") -> Picture:
    """Precision over recall at IoU 0.5, a line for each class and, with several, their mean in black.

    Args:
        precision: ``[10, 101, classes]``, :class:`torchdcn.evaluation.Evaluation`'s; classes of -1 are left out.
        class_names: Names of the classes; at most the ten of best AP50 are drawn one by one.
        title: A line above.

    Returns:
        ``[480, 640, 3]`` uint8.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import precision_recall
        >>> precision_recall(np.ones((10, 101, 1)), ["cat"]).shape
        (480, 640, 3)
    """
    curves = np.asarray(precision, float)[0]  # [101, classes]
    recall = np.linspace(0, 1, len(curves))
    figure, axes = _chart((640, 480), title)
    measured = [i for i in range(curves.shape[1]) if curves[:, i].min() >= 0]
    measured.sort(key=lambda i: -curves[:, i].mean())
    for rank, i in enumerate(measured[:10]):
        color = [c / 255 for c in _CHART_COLORS[rank % 6]]
        name = f"{class_names[i]} {curves[:, i].mean():.2f}"
        axes.plot(recall, curves[:, i], color=color, lw=1.6, ls="-" if rank < 6 else "--", label=name)
    if len(measured) > 1:
        mean = curves[:, measured].mean(axis=1)
        axes.plot(recall, mean, color="black", lw=2.4, label=f"mean of {len(measured)} {mean.mean():.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision at IoU 0.5")
    if measured:
        axes.legend(frameon=False, fontsize=9, loc="lower left", title="AP50", title_fontsize=9, alignment="left")
    return rendered(figure)


def _chart(size: tuple[int, int], title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.8)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", fontsize=12)
    return figure, axes


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
