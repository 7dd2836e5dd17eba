"""Uploaded pictures: checked, shrunk, and cached until newer ones replace them."""

from __future__ import annotations

import io
import secrets
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..images import load_image, upright_size
from ..plotting import encode_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .jobs import Result

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_SIDE = 1600
KEPT = 4
RESULTS = 12
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Fewer than Pillow reads: some of its formats start other programs, and no camera writes them."""


class NoPictureError(ValueError):
    """An upload is not a picture that the page takes; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def read_picture(content: bytes) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A picture file's pixels, with its size looked at before any of them is decoded.

    Args:
        content: The file; JPEG, PNG, WebP, GIF, BMP or TIFF.

    Returns:
        ``[H, W, 3]`` uint8, upright, at most :data:`MAX_SIDE` long; and the size (H, W) that the file had.

    Raises:
        NoPictureError: It is none of these, damaged, or has more bytes or pixels than allowed.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import encode_png
        >>> from torchdcn.web.pictures import read_picture
        >>> pixels, size = read_picture(encode_png(np.zeros((800, 3200, 3), np.uint8)))
        >>> pixels.shape, size
        ((400, 1600, 3), (800, 3200))
    """
    if not content:
        raise NoPictureError("image: the file is empty", 400)
    if len(content) > MAX_BYTES:
        raise NoPictureError(f"image: the file has more than {MAX_BYTES // 2**20} MB, which is the limit", 413)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remarks about odd files
        try:
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise NoPictureError(f"image: too many pixels, the limit is {MAX_PIXELS:,}", 413) from error
        except UnidentifiedImageError as error:
            raise NoPictureError(f"image: expected one of {', '.join(FORMATS)}, got something else", 415) from error
        except Exception as error:  # plugins fail on damaged files in ways of their own
            raise NoPictureError(f"image: can't be read: {_reason(error)}") from error
        with opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise NoPictureError(
                    f"image: {width} x {height} = {width * height:,} pixels are more than the limit of {MAX_PIXELS:,}",
                    413,
                )
            return _decoded(opened)


def _decoded(opened: Image.Image) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    try:
        height, width = upright_size(opened)
        opened.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG can be decoded at half of its size or less
        opened.load()
        pixels = load_image(opened)
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged files with SyntaxError, struct.error, EOFError and others
        raise NoPictureError(f"image: damaged: {_reason(error)}") from error
    factor = max(width, height) / MAX_SIDE
    if factor > 1:
        small = (max(1, round(width / factor)), max(1, round(height / factor)))
        pixels = np.asarray(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), np.uint8)
    return pixels, (height, width)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(eq=False)
class CachedPicture:
    """A picture that questions can be asked about.

    Attributes:
        id: Its name in requests; can't be guessed.
        pixels: ``[H, W, 3]`` uint8.
        original: (H, W) of the file.
        results: The newest :data:`RESULTS` results, by question.
    """

    id: str
    pixels: NDArray[np.uint8]
    original: tuple[int, int]
    results: OrderedDict[str, Result] = field(default_factory=OrderedDict)

    def store(self, question: str, result: Result) -> None:
        """Caches a result, and drops the oldest."""
        self.results[question] = result
        while len(self.results) > RESULTS:
            self.results.popitem(last=False)

    def cached(self, question: str) -> Result | None:
        """The result of a question, if it is still there; it counts as the newest from now on."""
        result = self.results.get(question)
        if result is not None:
            self.results.move_to_end(question)
        return result

    def png(self) -> bytes:
        """As a file."""
        return encode_png(self.pixels)

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        height, width = self.pixels.shape[:2]
        return {"id": self.id, "width": width, "height": height, "original": [self.original[1], self.original[0]]}


class PictureCache:
    """The newest pictures. A new one replaces the oldest, so that memory stays level.

    Args:
        capacity: How many there is room for.
    """

    def __init__(self, capacity: int = KEPT) -> None:
        self._capacity = capacity
        self._pictures: OrderedDict[str, CachedPicture] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, pixels: NDArray[np.uint8], original: tuple[int, int]) -> CachedPicture:
        """Caches a picture."""
        picture = CachedPicture(secrets.token_urlsafe(12), pixels, original)
        with self._lock:
            self._pictures[picture.id] = picture
            while len(self._pictures) > self._capacity:
                self._pictures.popitem(last=False)
        return picture

    def get(self, id: str) -> CachedPicture:
        """The picture of that id, which counts as the newest from now on.

        Raises:
            KeyError: There is none, or no longer.
        """
        with self._lock:
            self._pictures.move_to_end(id)
            return self._pictures[id]
