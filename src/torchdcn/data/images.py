"""Picture files to RGB arrays, the same way for every reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Reads a picture as RGB: grey, palette and CMYK are converted, alpha is dropped, 16 bits become 8.

    The pixels are taken as stored: COCO's own tools ignore the EXIF orientation, and so do the boxes and
    masks made with them. Labelling tools that show the picture turned annotate it turned; so where ``size``
    matches only the turned picture, that is what comes back.

    Args:
        path: The file.
        size: Height and width in pixels that the picture should have.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        OSError: The file is missing or can't be read as a picture; one line with its path.
        ValueError: The picture has another size than ``size``, or pixels that have no defined range (32-bit
            float).

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from torchdcn.data.images import read_image
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (6, 4), 200).save(path)
        >>> read_image(path).shape
        (4, 6, 3)
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such image file")
    try:
        with Image.open(path) as file:
            file.load()
    except MemoryError:
        raise
    except Exception as error:  # broken files raise SyntaxError, struct.error, IndexError and more in Pillow
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{path}: can't be read as an image: {reason}") from None
    image: Image.Image = file
    if image.mode == "F":
        raise ValueError(f"{path}: 32-bit float pixels have no fixed range; save the image with 8 or 16 bits")
    if size is not None and (image.height, image.width) != size:
        turned = ImageOps.exif_transpose(image)
        image = turned if (turned.height, turned.width) == size else image
    pixels = _to_rgb(image)
    if size is not None and pixels.shape[:2] != size:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ValueError(f"{path}: the image has {found} pixels, its annotation says {size[1]} x {size[0]}")
    return pixels


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert("RGB") would clip at 255. 16-bit files open as "I;16", some of them as "I".
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))  # a copy: PIL's own memory is read-only, which torch.from_numpy warns of
