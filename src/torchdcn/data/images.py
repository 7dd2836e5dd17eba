"""Pictures of data sets: the reader of :mod:`torchdcn.images`, with messages that begin with the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..images import Orientation, load_image
from .nearby import missing_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def read_image(
    path: Path, size: tuple[int, int] | None = None, orientation: Orientation = "stored"
) -> NDArray[np.uint8]:
    """Reads a data set's picture as RGB; see :func:`torchdcn.images.load_image`.

    The pixels are taken as stored: COCO's own tools ignore the EXIF orientation, and so do the boxes and masks made
    with them. Labelling tools that show the picture turned annotate it turned: where ``size`` matches only the turned
    picture, that is what comes back. The labels of YOLO and Pascal VOC are always of the picture as it is shown.

    Args:
        path: The file.
        size: Height and width in pixels that the picture should have.
        orientation: ``"stored"``, or ``"exif"`` for a picture that was labelled as it is shown.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        OSError: The file is missing or can't be read as a picture; one line that begins with its path.
        ValueError: The picture has another size than ``size``, or pixels of no known range.

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
        raise FileNotFoundError(missing_file(path))
    try:
        pixels = load_image(path, orientation=orientation, size=size)
    except OSError as error:
        reason = str(error).removeprefix(f"image: cannot read {path}: ")
        raise OSError(f"{path}: can't be read as an image: {reason}") from None
    except ValueError as error:
        raise ValueError(str(error).removeprefix("image: ")) from None
    return pixels
