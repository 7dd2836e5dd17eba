"""COCO's run lengths, checked before a decoder sees them: decoders trust them, and damaged ones never end."""

from __future__ import annotations

from typing import Any

import numpy as np

LONGEST = 7  # characters of one run length: 35 bits, more than any image has pixels


def rle_fault(segmentation: Any, height: int, width: int) -> str:
    """Says what is wrong with a COCO run-length encoding of an image of this size, or "".

    Args:
        segmentation: ``{"size": [height, width], "counts": runs}``; the runs as a list of integers or in COCO's
            compressed form (the ``rleToString`` of its C API), text or bytes.
        height: Of the image, in pixels.
        width: Likewise.

    Example:
        >>> from torchdcn.data.rle import rle_fault
        >>> rle_fault({"size": [8, 12], "counts": [5, 6]}, 8, 12)
        'its RLE covers 11 pixels, its image has 96'
    """
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        return f"expected an RLE of size [{height}, {width}] as its image, got {_short(size)}"
    if isinstance(counts, (str, bytes)):
        compressed = _run_lengths(counts)
        if compressed is None:
            return f"its RLE is damaged: {_short(counts)} is not COCO's compressed form"
        runs = compressed
    elif isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts):
        runs = counts
    else:
        return f"expected the counts of an RLE as a string or integers, got {_short(counts)}"
    if sum(runs) != height * width:
        return f"its RLE covers {sum(runs)} pixels, its image has {height * width}"
    return ""


def rle_is_empty(segmentation: dict[str, Any]) -> bool:
    """Whether a sound run-length encoding covers no pixel of its object.

    Example:
        >>> from torchdcn.data.rle import rle_is_empty
        >>> rle_is_empty({"size": [8, 12], "counts": [96]}), rle_is_empty({"size": [8, 12], "counts": [90, 6]})
        (True, False)
    """
    counts = segmentation["counts"]
    runs = _run_lengths(counts) if isinstance(counts, (str, bytes)) else counts
    return runs is None or not any(runs[1::2])


def _run_lengths(counts: str | bytes) -> list[int] | None:
    """Run lengths from COCO's compressed form, or None for what is not that form.

    A number is a row of characters from "0" on, five bits each, the lowest first; the sixth bit says that more follow,
    and the fifth of the last one is the sign. From the fourth on, a number is the change since the last but one.
    """
    raw = counts.encode("utf-8") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not digits.size:
        return []
    ends = np.flatnonzero(digits < 32)
    if digits.min() < 0 or digits.max() > 63 or not ends.size or ends[-1] != digits.size - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > LONGEST:
        return None
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    lengths_of_runs: list[int] = runs.tolist()
    return None if runs.min() < 0 else lengths_of_runs


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
