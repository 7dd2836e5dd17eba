"""The one reader of pictures: files, arrays and tensors to ``[H, W, 3]`` uint8 RGB; and the test-time resize."""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
Orientation = Literal["exif", "stored"]
ORIENTATION = 0x0112
"""EXIF's tag; 1 is upright."""
SIDEWAYS = (5, 6, 7, 8)
"""The orientations that swap height and width."""
SAMPLE_FORMAT = 339
"""TIFF's tag for the kind of its numbers; 2 is signed integers."""
BITS_PER_SAMPLE = 258
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow opens but can't decode by itself, or whose values have no range."""


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Every suffix of a file that :func:`load_image` can read, in lower case with its dot.

    Example:
        >>> from torchdcn.images import picture_suffixes
        >>> {".jpg", ".png", ".webp", ".jp2", ".ppm"} <= picture_suffixes()
        True
    """
    suffixes = Image.registered_extensions().items()  # loads all of Pillow's formats
    read = {suffix for suffix, name in suffixes if name in Image.OPEN and name not in NO_PICTURES}
    return frozenset(read | {".mpo"})  # several JPEGs in one file, which Pillow registers as JPEG


def is_picture(path: Path) -> bool:
    """Whether a path is a file with a picture's suffix, and not hidden: macOS leaves ``._a.jpg`` beside ``a.jpg``.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.images import is_picture
        >>> is_picture(Path("/nowhere/a.jpg"))
        False
    """
    return path.suffix.lower() in picture_suffixes() and not path.name.startswith(".") and path.is_file()


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of a file as it is shown: turned as its EXIF orientation says. Decodes no pixel.

    Raises:
        OSError: The file is missing or is no picture; one line that begins with its path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from torchdcn.images import picture_size
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.new("L", (6, 4)).save(path)
        >>> picture_size(path)
        (4, 6)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as picture:
                return upright_size(picture)
        except Exception as error:  # Pillow's formats raise many kinds
            raise OSError(f"{path}: can't be read as an image: {_reason(error)}") from None


def exif_orientation(path: Path) -> int:
    """The EXIF orientation of a picture file, 1 (upright) to 8; 1 where there is none or it can't be read.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.images import exif_orientation
        >>> exif_orientation(Path("/nowhere/a.jpg"))
        1
    """
    try:
        with Image.open(path) as picture:
            return _orientation(picture)
    except Exception:  # whoever reads the pixels tells what is wrong
        return 1


def load_image(
    image: ImageLike, *, orientation: Orientation = "exif", size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Reads a picture as ``[H, W, 3]`` uint8 RGB.

    Files and PIL images are turned upright by their EXIF orientation. Grayscale, palette, CMYK and black and
    white become RGB; an alpha channel is dropped. Of 16 bits the upper 8 remain, in gray as in colour, as in
    mmdetection, which reads with OpenCV: 65535 becomes 255, and a file that uses only 12 bits is dark.
    Floating-point files hold 0..1. Signed and 32-bit integers have no known range and are refused. Of an
    animation or a file of several pages the first is read; a PIL image is taken at the frame where it stands.

    Args:
        image: A path, a PIL image, an ``[H, W, 3]`` uint8 array (RGB), or a ``[3, H, W]`` tensor, uint8 or
            floating point in 0..1.
        orientation: Of files and PIL images: ``"exif"`` turns them upright, ``"stored"`` leaves them as they are
            stored, as COCO's own tools do.
        size: Height and width that the picture's annotation says. A ``"stored"`` picture of another size is turned
            upright where that gives this one, and refused else.

    Returns:
        The picture; the same memory where ``image`` is such an array already.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file is not a picture, or is damaged.
        TypeError: ``image`` is none of these kinds.
        ValueError: Wrong shape, dtype, range or size, or more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (a file
            is refused before it is decoded).

    Example:
        >>> import numpy as np
        >>> from torchdcn.images import load_image
        >>> load_image(np.zeros((48, 64, 3), np.uint8)).shape
        (48, 64, 3)
    """
    if isinstance(image, (str, os.PathLike)):
        pixels, what = _from_file(image, orientation, size), str(image)
    elif isinstance(image, Image.Image):
        pixels, what = _from_pil(image, "the PIL image", orientation, size), "the PIL image"
    elif isinstance(image, np.ndarray):
        pixels, what = _from_array(image), "the array"
    elif isinstance(image, Tensor):
        pixels, what = _from_tensor(image), "the tensor"
    else:
        raise TypeError(
            "image: expected a path, a PIL image, an [H, W, 3] uint8 array or a [3, H, W] tensor,"
            f" got {type(image).__name__}"
        )
    height, width = pixels.shape[:2]
    if size is not None and (height, width) != size:
        raise ValueError(
            f"image: {what}: the image has {width} x {height} pixels, its annotation says {size[1]} x {size[0]}"
        )
    return pixels


def _from_file(
    given: str | os.PathLike[str], orientation: Orientation, size: tuple[int, int] | None
) -> NDArray[np.uint8]:
    path = Path(given)
    if not path.exists():
        advice = "; download it first" if "://" in str(given) else ""
        raise FileNotFoundError(f"image: {given} does not exist{advice}")
    if not path.is_file() and not path.is_char_device():  # opening a pipe would wait for its other end
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise (IsADirectoryError if path.is_dir() else OSError)(f"image: {path} is {kind}, expected a picture file")
    with warnings.catch_warnings():
        # Pillow only warns up to twice its limit; here the limit is the limit (see _check_pixels).
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _reading(str(path)):
            opened = Image.open(path)
        with opened:
            return _from_pil(opened, str(path), orientation, size)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Pillow's exceptions as ours, which say what could not be read."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"image: {what} is too large to open safely: {error}") from error
    except UnidentifiedImageError as error:
        raise OSError(f"image: cannot read {what}: not a picture in a format that Pillow knows") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged files with SyntaxError, struct.error, EOFError and others
        raise OSError(f"image: cannot read {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(picture: Image.Image) -> int:
    """How the pixels that Pillow decodes are still to be turned: those of TIFF files it turns by itself."""
    return 1 if picture.format == "TIFF" else int(_exif(picture).get(ORIENTATION, 1))


def _exif(picture: Image.Image) -> Image.Exif:
    """The EXIF tags. Pillow decodes a whole PNG to look for them behind the pixels; here that is looked up first."""
    if picture.format == "PNG" and not _has_tags_behind_pixels(getattr(picture, "filename", "")):
        return Image.Image.getexif(picture)
    return picture.getexif()


def _has_tags_behind_pixels(path: str) -> bool:
    """Whether a PNG file has a chunk of tags or text behind its first pixels. Reads the headers of the chunks alone."""
    if not path:
        return True  # it is in memory: let Pillow look
    pixels = False
    with Path(path).open("rb", buffering=0) as file:
        file.seek(8)
        while len(header := file.read(8)) == 8 and header[4:] != b"IEND":
            pixels = pixels or header[4:] == b"IDAT"
            if pixels and header[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(header[:4], "big") + 4, os.SEEK_CUR)
    return False


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width of an opened picture once it is turned as its EXIF orientation says."""
    if picture.format == "TIFF" and picture.getexif().get(ORIENTATION, 1) in SIDEWAYS:
        picture.load()  # some versions of Pillow know the turned size only then
    turned = _orientation(picture) in SIDEWAYS
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _from_pil(
    picture: Image.Image, what: str, orientation: Orientation, size: tuple[int, int] | None
) -> NDArray[np.uint8]:
    _check_pixels(picture.height, picture.width, what)
    _check_range(picture, what)
    with _reading(what):
        annotated_upright = size not in (None, (picture.height, picture.width)) and size == upright_size(picture)
        if orientation == "exif" or annotated_upright:
            picture = ImageOps.exif_transpose(picture)
        mode = picture.mode
        if mode.startswith("I") or mode == "F":
            values = np.asarray(picture)
        else:
            if mode == "P" and "transparency" in picture.info:
                picture = picture.convert("RGBA")  # straight to RGB makes Pillow warn
            elif mode == "La":  # gray times its alpha, which Pillow turns to nothing but LA
                picture = picture.convert("LA")
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    gray = _to_eight_bits(values, mode, what)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _check_range(picture: Image.Image, what: str) -> None:
    """Refuses what a TIFF file's tags call signed or more than 16 bits, by its kind and not by its values."""
    tags: Any = getattr(picture, "tag_v2", {})  # of TIFF files alone
    if 2 in tags.get(SAMPLE_FORMAT, ()):
        kind = f"signed {max(tags.get(BITS_PER_SAMPLE, (8,)))}-bit"
    elif picture.mode == "I" and max(tags.get(BITS_PER_SAMPLE, (16,))) > 16:
        kind = f"{max(tags[BITS_PER_SAMPLE])}-bit"
    else:
        return
    raise ValueError(f"image: {what}: {kind} integers have no known range; save the image with unsigned 8 or 16 bits")


def _to_eight_bits(gray: NDArray[Any], mode: str, what: str) -> NDArray[np.uint8]:
    top = 1.0 if mode == "F" else 65535.0
    low, high = float(gray.min()), float(gray.max())
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"image: {what}: expected values in 0..{top:g} for PIL mode {mode}, got {low:g}..{high:g}; save the image "
            "with unsigned 8 or 16 bits"
        )
    eight = np.rint(gray * 255) if mode == "F" else gray >> 8
    return eight.astype(np.uint8)


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.ndim != 3 or array.shape[2] != 3:
        advice = ""
        if array.ndim == 2:
            advice = "; np.stack([gray] * 3, axis=2) makes one of grayscale"
        elif array.ndim == 4:
            advice = "; give several images as a list"
        elif array.ndim == 3 and array.shape[2] == 4:
            advice = "; image[:, :, :3] drops the alpha channel"
        elif array.ndim == 3 and array.shape[0] == 3:
            advice = "; transpose(1, 2, 0) turns it"
        raise ValueError(f"image: expected an array of shape [H, W, 3], got {list(array.shape)}{advice}")
    if array.dtype != np.uint8:
        raise ValueError(f"image: expected a uint8 array with values 0..255, got {array.dtype}")
    _check_pixels(array.shape[0], array.shape[1], "the array")
    return array


def _from_tensor(tensor: Tensor) -> NDArray[np.uint8]:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        more = "; give several images as a list" if tensor.ndim == 4 else ""
        raise ValueError(f"image: expected a tensor of shape [3, H, W], got {list(tensor.shape)}{more}")
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        raise ValueError(f"image: expected a tensor that holds its pixels, got a {kind} tensor")
    _check_pixels(tensor.shape[1], tensor.shape[2], "the tensor")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.double()
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            low, high = float(tensor.min()), float(tensor.max())
            raise ValueError(f"image: expected a floating-point tensor in 0..1, got {low:g}..{high:g}")
        tensor = (tensor * 255).round().to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"image: expected a uint8 or floating-point tensor, got {tensor.dtype}")
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


def _check_pixels(height: int, width: int, what: str) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"image: {what} has no pixels ({height} x {width})")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise ValueError(
            f"image: {what} has {height} x {width} = {height * width:,} pixels, more than the limit of"
            f" {limit:,}; make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def fit_size(height: int, width: int, min_size: int | Sequence[int], max_size: int) -> tuple[int, int]:
    """The test-time size of a picture, mmdet's rule: fit (max_size, min_size), keep the ratio, round half up.

    Args:
        height: In pixels; ``width`` likewise.
        width: In pixels.
        min_size: What the short side grows or shrinks to; of several (multi-scale training) the last serves,
            as in torchvision.
        max_size: What the long side does not exceed.

    Returns:
        ``(height, width)``, each at least 1.

    Example:
        >>> from torchdcn.images import fit_size
        >>> fit_size(480, 640, 800, 1333)
        (800, 1067)
    """
    short = min_size if isinstance(min_size, int) else min_size[-1]
    scale = min(max_size / max(height, width), short / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """OpenCV's bilinear resize of ``[H, W, 3]`` uint8 to ``size`` = (height, width), as mmdet's.

    Example:
        >>> import numpy as np
        >>> from torchdcn.images import resize
        >>> resize(np.zeros((48, 64, 3), np.uint8), (96, 128)).shape
        (96, 128, 3)
    """
    import cv2

    if image.shape[:2] == size:
        return image
    wide = (size[1], size[0])
    return np.asarray(cv2.resize(np.ascontiguousarray(image), wide, interpolation=cv2.INTER_LINEAR), np.uint8)
