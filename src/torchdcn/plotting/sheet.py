"""Sheets of several pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .canvas import check_image, text_font

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .canvas import Picture


def detections_grid(
    pictures: Sequence[Picture],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    width: int = 1600,
) -> Picture:
    """Pictures in rows and columns of equal cells, with captions below them.

    Args:
        pictures: ``[H, W, 3]`` uint8 each, of any size; scaled to fit a cell, their ratio kept.
        captions: A line for each.
        columns: By default about a square's.
        width: Of the whole, in pixels.

    Returns:
        ``[h, width, 3]`` uint8.

    Raises:
        ValueError: No pictures, or not as many captions.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import detections_grid
        >>> detections_grid([np.zeros((64, 64, 3), np.uint8)] * 4, columns=4, width=800).shape[1]
        800
    """
    if not len(pictures):
        raise ValueError("pictures: expected at least one, got none")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"captions: expected one for each of {len(pictures)} pictures, got {len(captions)}")
    for picture in pictures:
        check_image(picture)
    across = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    gap = max(4, width // 160)
    cell = (width - gap * (across + 1)) // across
    font = text_font(max(11, width // 100))
    line = 0 if captions is None else sum(font.getmetrics()) + gap // 2
    ratio = float(np.median([p.shape[0] / p.shape[1] for p in pictures]))
    high = round(cell * min(max(ratio, 0.5), 1.5))
    rows = math.ceil(len(pictures) / across)
    sheet = Image.new("RGB", (width, rows * (high + line + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        left = gap + index % across * (cell + gap)
        top = gap + index // across * (high + line + gap)
        fit = min(cell / picture.shape[1], high / picture.shape[0])
        small = (max(1, round(picture.shape[1] * fit)), max(1, round(picture.shape[0] * fit)))
        method = cv2.INTER_AREA if fit < 1 else cv2.INTER_CUBIC
        tile = Image.fromarray(np.asarray(cv2.resize(picture, small, interpolation=method), np.uint8))
        sheet.paste(tile, (left + (cell - small[0]) // 2, top + (high - small[1]) // 2))
        if captions is not None:
            draw.text((left + cell / 2, top + high + gap // 2), captions[index], fill="black", font=font, anchor="ma")
    return np.array(sheet)
