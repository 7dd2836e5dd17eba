"""COCO's segmentations: which are masks, which are damaged, and which are empty."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from .rle import rle_fault, rle_is_empty

FEW_POINTS = 8
"""Polygons of at most so many points are asked for their area: the slivers that tools leave have three or four."""


def shorten(value: Any) -> str:
    """A value's ``repr`` in at most 60 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def are_numbers(values: Any) -> bool:
    """Whether ``values`` is a list of finite numbers."""
    # sum() runs at C speed over the tens of millions of coordinates of the full COCO; text and lists raise there.
    try:
        return isinstance(values, list) and math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def segmentation_fault(segmentation: Any, height: int, width: int) -> str:
    """Says what is damaged about a segmentation of an image of this size, or "".

    A polygon of fewer than three points is not damaged but degenerate; see :func:`sound_polygons`.

    Example:
        >>> from torchdcn.data.segmentation import segmentation_fault
        >>> segmentation_fault([[1, 2, 3, 4, 5, 6, 7]], 8, 12)
        'segmentation: expected polygons, lists of x, y of at least three points, got [1, 2, 3, 4, 5, 6, 7]'
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not are_numbers(polygon) or len(polygon) % 2:
                wanted = "polygons, lists of x, y of at least three points"
                return f"segmentation: expected {wanted}, got {shorten(polygon)}"
        return ""
    if not isinstance(segmentation, dict):
        return f"segmentation: expected a list of polygons or an RLE, got {shorten(segmentation)}"
    fault = rle_fault(segmentation, height, width)
    return f"segmentation: {fault}" if fault else ""


def is_missing(segmentation: Any) -> bool:
    """Whether an annotation has no segmentation at all: none, null, or an empty list or object."""
    return segmentation is None or (isinstance(segmentation, (list, dict, str)) and not segmentation)


def is_degenerate(segmentation: Any) -> bool:
    """Whether nothing of a sound segmentation is a mask: only degenerate polygons, or run lengths without a pixel.

    Example:
        >>> from torchdcn.data.segmentation import is_degenerate
        >>> is_degenerate([[]]), is_degenerate([[1, 2, 5, 2]]), is_degenerate([[1, 2, 5, 2], [0, 0, 4, 0, 0, 4]])
        (True, True, False)
    """
    if isinstance(segmentation, list):
        return not any(map(_has_area, segmentation))
    return rle_is_empty(segmentation)


def sound_polygons(segmentation: Any) -> Any:
    """A segmentation without its degenerate polygons: those of fewer than three points or without area.

    Example:
        >>> from torchdcn.data.segmentation import sound_polygons
        >>> sound_polygons([[1, 2, 5, 2], [0, 0, 4, 0, 0, 4]])
        [[0, 0, 4, 0, 0, 4]]
    """
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon for polygon in segmentation if _has_area(polygon)]


def _has_area(polygon: list[float]) -> bool:
    if len(polygon) < 6:
        return False
    if len(polygon) > 2 * FEW_POINTS:
        return True
    points = list(zip(polygon[0::2], polygon[1::2], strict=True))
    x0, y0 = points[0]
    around = pairwise([*points, points[0]])  # relative to a point of it, so that large coordinates cancel exactly
    return sum((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) for (x1, y1), (x2, y2) in around) != 0
