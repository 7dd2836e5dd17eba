"""What a node of a network depends on, as figures for screens and papers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .canvas import check_image
from .sampling import muted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from .canvas import Picture

KINDS = {
    "sampling": "Effective sampling locations",
    "field": "Effective receptive field",
    "region": "Saliency region",
}
"""The three kinds of support and their titles. Everything else that names a kind uses these keys."""
SCALES = {"sampling": "strength", "field": "gradient"}  # the quantity that colours show
CELL = 4.2  # inches, of the longer side of a picture
TEXT = 10  # points
HEAT_BLUR = 150  # the longer side by the standard deviation of the blur
COLORS = "plasma"  # equal steps for all kinds of colour vision, and bright on grey


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Support:
    """What a node of one network depends on, as plain arrays; (0, 0) is the centre of the picture's first pixel.

    Attributes:
        name: The network's, for the reader.
        centre: ``[2]`` as x, y: the node.
        points: ``[M, 2]`` as x, y.
        strengths: ``[M]``, at least 0.
        field: ``[H, W]``, at least 0.
        region: ``[H, W]`` bool: what is kept.
        fill: ``[3]`` in 0..1: what the rest was filled with.
        box: ``[4]`` as x1, y1, x2, y2 with the picture's corner at (0, 0), for a node that is a box.
        outline: ``[H, W]`` bool: the object, whose outline is drawn.
        notes: A line for each of "sampling", "field" and "region".
    """

    name: str
    centre: ArrayLike
    points: ArrayLike
    strengths: ArrayLike
    field: ArrayLike
    region: ArrayLike
    fill: ArrayLike
    box: ArrayLike | None = None
    outline: ArrayLike | None = None
    notes: dict[str, str] | None = None


def support_figure(
    image: Picture, supports: Sequence[Support], kinds: Sequence[str] = tuple(KINDS), *, most: int = 400
) -> Figure:
    """Pictures of a node's support: a column a kind and a row a network, or the networks side by side for one kind.

    Args:
        image: ``[H, W, 3]`` uint8.
        supports: One for each network.
        kinds: Some of "sampling" (the strongest points, larger and brighter for more strength), "field" (a heat map,
            blurred by a 150th of the longer side) and "region" (a cut-out on the colour that the rest was filled
            with). Strengths and heat are drawn as square roots: a quarter of the largest is half way.
        most: How many points are drawn at most.

    Returns:
        A figure; see :func:`figure_bytes`.

    Raises:
        ValueError: No networks, a kind that is none, or arrays that do not fit the image.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import Support, figure_bytes, support_figure
        >>> image, region = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), bool)
        >>> region[20:40, 30:50] = True
        >>> one = Support("ours", [40, 30], [[40, 30], [52, 31]], [0.2, 0.9], region * 1.0, region, [0.4] * 3)
        >>> figure_bytes(support_figure(image, [one]), "png")[1:4]
        b'PNG'
    """
    from matplotlib.figure import Figure

    check_image(image)
    if not supports:
        raise ValueError("supports: expected at least one, got none")
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {list(kinds)}")
    for support in supports:
        _check(support, image)
    side_by_side = len(kinds) == 1
    rows, columns = (1, len(supports)) if side_by_side else (len(supports), len(kinds))
    height, width = image.shape[:2]
    wide, high = CELL * width / max(height, width), CELL * height / max(height, width)
    wide = max(wide, 3.2)  # legends need this much
    above, below, gap = 0.42, 0.66, 0.12
    size = (columns * (wide + gap) + gap, rows * (above + high + below))
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        support = supports[column if side_by_side else row]
        kind = kinds[0 if side_by_side else column]
        left = gap + column * (wide + gap)
        bottom = size[1] - row * (above + high + below) - above - high
        axes = figure.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))
        _DRAW[kind](axes, image, support, most)
        _mark_node(axes, support)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_axis_off()
        title = support.name if side_by_side else KINDS[kind]
        if not side_by_side and column == 0 and len(supports) > 1:
            title = f"{support.name}\n{title}"
        axes.set_title(title, fontsize=TEXT, loc="left", pad=4)
        _legend(figure, axes, kind, support, (left, bottom, wide), size)
    return figure


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a "png" or "svg" file, which needs no other; the same figure gives the same bytes.

    Raises:
        ValueError: Another kind.
    """
    import matplotlib as mpl

    if kind not in ("png", "svg"):
        raise ValueError(f"kind: expected png or svg, got {kind!r}")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "torchdcn"}):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def heat_map(field: ArrayLike) -> NDArray[np.float64]:
    """A receptive field as every picture of it is coloured: blurred, then its square root, as a share of the largest.

    Args:
        field: ``[H, W]``, at least 0.

    Returns:
        ``[H, W]`` in 0..1; zero everywhere for a field of zeros.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting.support import heat_map
        >>> float(heat_map(np.eye(64)).max())
        1.0
    """
    values = np.asarray(field, float)
    # Strided layers and resizing leave single pixels, which no screen or paper would show without the blur.
    heat = cv2.GaussianBlur(values, (0, 0), max(values.shape) / HEAT_BLUR)
    return np.asarray(np.sqrt(heat / max(float(heat.max()), 1e-300)))


def _check(support: Support, image: Picture) -> None:
    points, strengths = np.asarray(support.points), np.asarray(support.strengths)
    if points.ndim != 2 or points.shape[1] != 2 or strengths.shape != points.shape[:1]:
        raise ValueError(
            f"supports: expected points [M, 2] and strengths [M], got {list(points.shape)}, {list(strengths.shape)}"
        )
    for name in ("field", "region", "outline"):
        value = getattr(support, name)
        if value is not None and np.shape(value) != image.shape[:2]:
            raise ValueError(f"supports: expected {name} {list(image.shape[:2])}, got {list(np.shape(value))}")


def _show(axes: Axes, picture: NDArray[Any], **how: Any) -> Any:
    return axes.imshow(picture, interpolation="nearest", **how)


def _draw_sampling(axes: Axes, image: Picture, support: Support, most: int) -> None:
    _show(axes, muted(image))
    strengths = np.asarray(support.strengths, float)
    order = np.argsort(-strengths, kind="stable")[:most]
    order = order[strengths[order] > 0][::-1]  # the strongest on top
    points = np.asarray(support.points, float)[order]
    share = np.sqrt(strengths[order] / max(float(strengths.max(initial=0)), 1e-300))
    style: dict[str, Any] = {"cmap": COLORS, "vmin": 0, "vmax": 1, "edgecolors": "black", "linewidths": 0.3}
    axes.scatter(points[:, 0], points[:, 1], s=3 + 42 * share**2, c=share, zorder=3, **style)


def _draw_field(axes: Axes, image: Picture, support: Support, _: int) -> None:
    _show(axes, muted(image))
    heat = heat_map(support.field)
    # Little heat lets the picture through; much hides it.
    _show(axes, heat, cmap=COLORS, vmin=0, vmax=1, alpha=np.clip(2.5 * (heat - 0.08), 0, 1), zorder=2)


def _draw_region(axes: Axes, image: Picture, support: Support, _: int) -> None:
    kept = np.asarray(support.region, bool)
    fill = np.clip(np.asarray(support.fill, float) * 255, 0, 255).round().astype(np.uint8)
    _show(axes, np.where(kept[:, :, None], image, fill))
    _contour(axes, kept, 1.2, 2.4)


def _contour(axes: Axes, mask: NDArray[np.bool_], inner: float, outer: float, style: str = "solid") -> None:
    """The outline of a mask, white on black so that it is seen on anything."""
    padded = np.pad(mask, 1).astype(float)
    if not mask.any():
        return
    rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
    for color, width in (("black", outer), ("white", inner)):
        lines = "solid" if color == "black" else style
        axes.contour(columns, rows, padded, levels=[0.5], colors=color, linewidths=width, linestyles=lines, zorder=4)


_DRAW = {"sampling": _draw_sampling, "field": _draw_field, "region": _draw_region}


def _mark_node(axes: Axes, support: Support) -> None:
    if support.outline is not None:
        _contour(axes, np.asarray(support.outline, bool), 0.7, 1.5, "dashed")
    if support.box is not None:
        x1, y1, x2, y2 = (float(v) - 0.5 for v in np.asarray(support.box, float))
        corners = ([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1])
        axes.plot(*corners, color="black", lw=3, zorder=5)
        axes.plot(*corners, color="white", lw=1.4, zorder=5)
        return
    x, y = np.asarray(support.centre, float)
    for size, color, width in ((11, "black", 3.2), (11, "white", 1.6)):
        axes.plot(x, y, "o", mfc="none", mec=color, ms=size, mew=width, zorder=5)


def _legend(
    figure: Figure,
    axes: Axes,
    kind: str,
    support: Support,
    place: tuple[float, float, float],  # left and bottom of the picture, its width, in inches
    size: tuple[float, float],
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    left, bottom, wide = place
    if kind != "region":
        bar_place = (left / size[0], (bottom - 0.16) / size[1], 0.42 * wide / size[0], 0.09 / size[1])
        strip = figure.add_axes(bar_place)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLORS), cax=strip, orientation="horizontal")
        bar.set_ticks([0, 0.5, 1], labels=["0", "¼", "max"])
        bar.ax.tick_params(labelsize=TEXT - 3, length=2, pad=1)
        bar.outline.set_linewidth(0.4)
        after = ((left + 0.45 * wide) / size[0], (bottom - 0.115) / size[1])
        figure.text(*after, SCALES[kind], fontsize=TEXT - 2, va="center", color="#333333")
    ring: dict[str, Any] = {"mfc": "none", "mec": "#333333", "mew": 1.6, "ls": "none"}
    marks = [Line2D([], [], marker="s" if support.box is not None else "o", ms=7, label="node", **ring)]
    if kind == "region":
        marks.append(Line2D([], [], color="#333333", lw=1.6, label="kept"))
    if support.outline is not None:
        marks.append(Line2D([], [], color="#333333", lw=1, ls="--", label="object"))
    axes.legend(
        handles=marks, loc="upper right", bbox_to_anchor=(1.0, -0.02), ncols=3, frameon=False, fontsize=TEXT - 2,
        borderaxespad=0, handletextpad=0.4, columnspacing=1.0, handlelength=1.3,
    )  # fmt: skip
    note = (support.notes or {}).get(kind, "")
    figure.text(left / size[0], (bottom - 0.52) / size[1], note, fontsize=TEXT - 2, color="#444444")
