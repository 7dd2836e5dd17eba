"""What every picture shares: colours, sizes, fonts, files."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]  # [H, W, 3] RGB

Color = tuple[int, int, int]
# Okabe and Ito's palette (Color Universal Design, 2008) without black; neighbours differ in brightness.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
)
READABLE_SIDE = 900  # small pictures are enlarged by whole factors until their long side is about this


def readable_scale(height: int, width: int) -> int:
    """The whole factor that brings a small picture to about 900 pixels; 1 for others.

    Example:
        >>> from torchdcn.plotting import readable_scale
        >>> readable_scale(128, 128), readable_scale(480, 640)
        (7, 1)
    """
    return max(1, round(READABLE_SIDE / max(height, width)))


def encode_png(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file.

    Example:
        >>> import numpy as np
        >>> from torchdcn.plotting import encode_png
        >>> encode_png(np.zeros((4, 4, 3), np.uint8))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def check_image(image: Picture) -> None:
    """Raises ValueError unless ``image`` is ``[H, W, 3]`` uint8."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image: expected a uint8 array of shape [H, W, 3], got {got}")


def enlarge(image: Picture, factor: int) -> Picture:
    """A picture larger by a whole factor, smooth; a copy for 1."""
    if factor == 1:
        return image.copy()
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)


@lru_cache(maxsize=16)
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all text in pictures, ``size`` pixels high; matplotlib ships it."""
    import matplotlib as mpl  # ships the font

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def rendered(figure: Figure) -> Picture:
    """A figure's pixels, ``[H, W, 3]`` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib types only some of its methods
    return np.array(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
