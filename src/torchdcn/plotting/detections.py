"""Pictures of what was found: masks, boxes and tags."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .canvas import PALETTE, Color, check_image, enlarge, readable_scale, text_font

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from PIL import ImageFont

    from .canvas import Picture

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2
CROWD = 15  # more objects than this, all of one class, are tagged by their scores alone


def draw_detections(
    image: Picture,
    boxes: ArrayLike,
    scores: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    *,
    scale: int | None = None,
    color_by: Literal["auto", "class", "object"] = "auto",
) -> Picture:
    """Masks as translucent fills with contours, boxes, and tags with class and score.

    Tags keep inside the picture, off each other and, where they can, off the objects; the best detections choose
    first. Where there is no room the class name goes, then the tag. A crowd of one class is named once.

    Args:
        image: ``[H, W, 3]`` uint8.
        boxes: ``[D, 4]``, x1, y1, x2, y2 in pixels.
        scores: ``[D]``; None draws none.
        labels: ``[D]``, indices into ``class_names``.
        masks: ``[D, H, W]`` bool.
        class_names: Names of all classes.
        scale: Whole factor to enlarge by; None enlarges small pictures (:func:`readable_scale`).
        color_by: A colour a class or an object; "auto" is by object for masks and for a single class.

    Returns:
        ``[H * scale, W * scale, 3]`` uint8; ``image`` stays as it was.

    Raises:
        ValueError: ``image`` is not ``[H, W, 3]`` uint8, or the others do not fit.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import draw_detections
        >>> image = np.full((64, 96, 3), 90, np.uint8)
        >>> draw_detections(image, [[10, 10, 60, 40]], [0.9], [0], class_names=["cat"], scale=2).shape
        (128, 192, 3)
    """
    check_image(image)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    count = len(corners)
    indices = np.zeros(count, int) if labels is None else np.asarray(labels, int).reshape(-1)
    marks = None if scores is None else np.asarray(scores, float).reshape(-1)
    shapes = None if masks is None else np.asarray(masks, bool)
    for name, given in (("scores", marks), ("labels", indices), ("masks", shapes)):
        if given is not None and len(given) != count:
            raise ValueError(f"{name}: expected one for each of {count} boxes, got {len(given)}")
    if shapes is not None and shapes.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks: expected [D, {image.shape[0]}, {image.shape[1]}], got {list(shapes.shape)}")
    factor = readable_scale(*image.shape[:2]) if scale is None else scale
    canvas = enlarge(image, factor)
    several = len(class_names or ()) > 1
    by_class = color_by == "class" or (color_by == "auto" and several and shapes is None)
    colors = _colors(indices if by_class else np.arange(count))
    line = max(1, round(math.hypot(*canvas.shape[:2]) / 700))
    if shapes is not None:
        _draw_masks(canvas, shapes, colors, factor, line)
    corners = corners * factor
    _draw_boxes(canvas, corners, colors, line if shapes is None else max(1, line // 2))
    names = [class_names[i] if class_names is not None else "" for i in indices]
    return _draw_tags(canvas, corners, colors, names, marks, _covered(canvas.shape[:2], corners, shapes))


def _covered(size: tuple[int, int], corners: NDArray[np.float64], masks: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Where there are objects: their masks, else their boxes."""
    if masks is not None:
        union = np.asarray(masks.any(axis=0), np.uint8)
        return np.asarray(cv2.resize(union, size[::-1], interpolation=cv2.INTER_NEAREST)) > 0
    covered = np.zeros(size, bool)
    for x1, y1, x2, y2 in np.rint(corners).clip(0).astype(int):
        covered[y1:y2, x1:x2] = True
    return covered


def _colors(hues: NDArray[np.int_]) -> list[Color]:
    """A colour of the palette for each; objects of one colour get three shades of it in turn."""
    seen: dict[int, int] = {}
    colors = []
    for hue in (int(hue) % len(PALETTE) for hue in hues):
        shade = (0.0, 0.35, -0.25)[seen.get(hue, 0) % 3]
        seen[hue] = seen.get(hue, 0) + 1
        toward = 255 if shade > 0 else 0
        red, green, blue = (round(c + abs(shade) * (toward - c)) for c in PALETTE[hue])
        colors.append((red, green, blue))
    return colors


def _draw_masks(canvas: Picture, masks: NDArray[np.bool_], colors: list[Color], factor: int, line: int) -> None:
    # Large ones first, so that a small object in front of a large one keeps its own colour.
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        rows, columns = np.flatnonzero(masks[index].any(1)), np.flatnonzero(masks[index].any(0))
        if not len(rows):
            continue
        # Work on the object's own window (two pixels more for its smooth edge): a mask of 4000 px is mostly empty.
        top, bottom = max(0, rows[0] - 2), min(masks.shape[1], rows[-1] + 3)
        left, right = max(0, columns[0] - 2), min(masks.shape[2], columns[-1] + 3)
        window = masks[index, top:bottom, left:right].astype(np.uint8) * 255
        size = (window.shape[1] * factor, window.shape[0] * factor)
        smooth = cv2.resize(window, size, interpolation=cv2.INTER_LINEAR) if factor > 1 else window
        inside = smooth > 127
        part = canvas[top * factor : bottom * factor, left * factor : right * factor]
        color = np.array(colors[index], np.float32)
        part[inside] = (part[inside] * 0.6 + color * 0.4).astype(np.uint8)
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(part, contours, -1, colors[index], line, cv2.LINE_AA)


def _draw_boxes(canvas: Picture, corners: NDArray[np.float64], colors: list[Color], line: int) -> None:
    height, width = canvas.shape[:2]
    limits = np.array([width - 1, height - 1] * 2)
    for box, color in reversed(list(zip(corners, colors, strict=True))):  # the best on top
        x1, y1, x2, y2 = (int(value) for value in np.clip(np.rint(box), 0, limits))
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, line, cv2.LINE_8)


def _draw_tags(
    canvas: Picture,
    corners: NDArray[np.float64],
    colors: list[Color],
    names: list[str],
    scores: NDArray[np.float64] | None,
    covered: NDArray[np.bool_],
) -> Picture:
    height, width = canvas.shape[:2]
    crowd = len(names) > CROWD and len(set(names)) == 1
    font = text_font(max(9, round(math.hypot(height, width) / (85 if crowd else 70))))
    weight = np.asarray(cv2.integral(covered.astype(np.uint8)), np.int32)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    taken: list[Rectangle] = []

    def put(text: str, spot: Rectangle, color: Color) -> None:
        taken.append(spot)
        draw.rectangle(spot, fill=color)
        middle = ((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2)
        draw.text(middle, text, fill=_ink(color), font=font, anchor="mm")

    if crowd and names[0]:  # the name once, in a corner, instead of everywhere
        text = f"{len(names)} × {names[0]}"
        frame = np.array([0, 0, width, height], float)
        spot = _best_spot(text, font, frame, weight, taken, inside_only=True)
        if spot is not None:
            put(text, spot, (255, 255, 255))
    for index in range(len(corners)) if scores is None else np.argsort(-scores, kind="stable"):
        score = "" if scores is None else f"{scores[index]:.2f}"
        for text in (score,) if crowd else (f"{names[index]} {score}".strip(), score):
            spot = _best_spot(text, font, corners[index], weight, taken) if text else None
            if spot is not None:
                put(text, spot, colors[index])
                break
    return np.array(picture)


def _best_spot(
    text: str,
    font: ImageFont.FreeTypeFont,
    box: NDArray[np.float64],
    weight: NDArray[np.int32],
    taken: list[Rectangle],
    inside_only: bool = False,
) -> Rectangle | None:
    """The place at the box's corners, inside the picture and on no other tag, that covers the least of the objects."""
    ascent, descent = font.getmetrics()
    pad = max(2, round(font.size / 5))
    wide, high = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent
    height, width = weight.shape[0] - 1, weight.shape[1] - 1
    x1, y1, x2, y2 = (round(value) for value in box)
    rows = (y1, y2 - high) if inside_only else (y1 - high, y2 + 1, y1, y2 - high)
    best, least = None, math.inf
    for top in rows:
        for x in (x1, x2 - wide + 1):
            left = max(0, min(x, width - wide))
            spot = (left, top, left + wide - 1, top + high - 1)
            inside = top >= 0 and spot[3] < height and spot[2] < width
            if not inside or any(_overlap(spot, other) for other in taken):
                continue
            hidden = (weight[top + high, left + wide] - weight[top, left + wide]) - (
                weight[top + high, left] - weight[top, left]
            )
            if hidden < least:
                best, least = spot, hidden
    return best


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _ink(color: Color) -> Color:
    """Black or white, whichever is easier to read on a colour."""
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if bright > 110 else (255, 255, 255)
