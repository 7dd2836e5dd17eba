"""The picture of where deformable layers sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import READABLE_SIDE, check_image, enlarge, readable_scale, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from .canvas import Picture


def draw_sampling_points(
    image: Picture,
    points: ArrayLike,
    weights: ArrayLike | None = None,
    centre: ArrayLike | None = None,
    regular: ArrayLike | None = None,
    *,
    title: str = "",
    scale: int | None = None,
) -> Picture:
    """Where deformable layers sample for one output position, on the picture: larger and brighter for more weight.

    Args:
        image: ``[H, W, 3]`` uint8; shown in muted grey, so that the points stand out.
        points: ``[M, 2]`` as x, y in pixels; (0, 0) is the centre of the first pixel.
        weights: ``[M]`` >= 0, such as products of masks; shown relative to the largest. None: all alike.
        centre: ``[2]`` as x, y: the output position.
        regular: ``[R, 2]``: where an ordinary convolution would sample, shown as faint crosses.
        title: A line above the picture.
        scale: Whole factor to enlarge by; None enlarges small pictures (:func:`readable_scale`).

    Returns:
        ``[h, w, 3]`` uint8: the picture with a legend below it.

    Raises:
        ValueError: ``image`` is not ``[H, W, 3]`` uint8, or there are not as many weights as points.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import draw_sampling_points
        >>> image = np.full((64, 96, 3), 90, np.uint8)
        >>> drawn = draw_sampling_points(image, [[40, 30], [52.5, 31]], [0.2, 0.9], centre=[45, 30])
    """
    check_image(image)
    xy = np.asarray(points, float).reshape(-1, 2)
    strength = np.ones(len(xy)) if weights is None else np.asarray(weights, float).reshape(-1)
    if len(strength) != len(xy):
        raise ValueError(f"weights: expected one for each of {len(xy)} points, got {len(strength)}")
    strength = strength / max(float(strength.max(initial=0)), 1e-12)
    factor = readable_scale(*image.shape[:2]) if scale is None else scale
    figure, axes, unit = _picture_axes(muted(enlarge(image, factor)), image.shape[:2], title)
    if regular is not None:
        grid = np.unique(np.asarray(regular, float).reshape(-1, 2).round(3), axis=0)
        style: dict[str, Any] = {"marker": "+", "linewidths": 0.9 * unit, "color": "white", "alpha": 0.75}
        axes.scatter(grid[:, 0], grid[:, 1], s=36 * unit**2, zorder=2, **style)
        axes.plot([], [], "+", color="#666666", ms=8 * unit, label="regular convolution")
    order = np.argsort(strength, kind="stable")  # the strongest on top
    dots = axes.scatter(
        xy[order, 0],
        xy[order, 1],
        s=(5 + 40 * strength[order]) * unit**2,
        c=strength[order],
        cmap="plasma",  # equal steps for all kinds of colour vision
        vmin=0,
        vmax=1,
        edgecolors="black",
        linewidths=0.4 * unit,
        zorder=3,
    )
    axes.plot([], [], "o", color="#b12a90", mec="black", ms=6 * unit, mew=0.4 * unit, label="samples")
    if centre is not None:
        x, y = np.asarray(centre, float).reshape(2)
        for size, color in ((15, "black"), (13, "white")):
            axes.plot(x, y, "o", mfc="none", mec=color, ms=size * unit, mew=(4 if size == 15 else 2) * unit, zorder=4)
        axes.plot([], [], "o", mfc="none", mec="#333333", ms=11 * unit, mew=2 * unit, label="output position")
    _sampling_legend(figure, axes, dots if weights is not None else None)
    return rendered(figure)


def _sampling_legend(figure: Figure, axes: Axes, dots: Any | None) -> None:
    """A colour bar on the left and the marks on the right of the strip below the picture."""
    below = axes.get_position().y0
    unit = figure.get_figwidth() * figure.dpi / READABLE_SIDE
    if dots is not None:
        strip = figure.add_axes((0.03, below * 0.55, 0.3, below * 0.22))
        bar = figure.colorbar(dots, cax=strip, orientation="horizontal", ticks=[0, 0.5, 1])
        bar.set_ticklabels(["0", "weight of the sample, of the largest", "1"])
        bar.ax.tick_params(labelsize=10 * unit, length=0)
    axes.legend(
        loc="center right",
        bbox_to_anchor=(0.0, -below / (1 - below), 0.99, below / (1 - below)),
        ncols=3,
        frameon=False,
        fontsize=10 * unit,
    )


def muted(image: Picture) -> Picture:
    """A picture in which coloured marks stand out: nearly grey, and darker."""
    gray = image.astype(np.float32).mean(axis=2, keepdims=True)
    return np.asarray(0.75 * (0.7 * gray + 0.3 * image) + 24, np.uint8)


def _picture_axes(picture: Picture, size: tuple[int, int], title: str) -> tuple[Figure, Axes, float]:
    """Axes that fill a figure but for a strip below, one of their pixels for each of the picture's.

    Returns also the size of a marker: 1 for pictures of 900 pixels, more for larger ones.
    """
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    unit = max(0.6, max(height, width) / READABLE_SIDE)
    above, below = (round(34 * unit) if title else 0), round(64 * unit)
    dpi = 100
    figure = Figure(figsize=(width / dpi, (height + above + below) / dpi), dpi=dpi, facecolor="white")
    total = height + above + below
    axes = figure.add_axes((0, below / total, 1, height / total))
    axes.imshow(picture, extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5), interpolation="nearest")
    axes.set_axis_off()
    axes.set_xlim(-0.5, size[1] - 0.5)
    axes.set_ylim(size[0] - 0.5, -0.5)
    if title:
        figure.text(0.5, 1 - above / total / 2, title, ha="center", va="center", fontsize=12 * unit)
    return figure, axes, unit
