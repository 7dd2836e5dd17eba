"""Pictures of any kind to one kind, ``[H, W, 3]`` uint8 RGB, upright; and the test-time resize."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


def load_image(image: ImageLike) -> NDArray[np.uint8]:
    """Reads a picture as ``[H, W, 3]`` uint8 RGB.

    Files and PIL images are turned upright by their EXIF orientation. Grayscale, palette, CMYK and black and
    white become RGB; an alpha channel is dropped. Of 16 bits the upper 8 remain, in gray as in colour, as in
    mmdetection, which reads with OpenCV: 65535 becomes 255, and a file that uses only 12 bits is dark.
    Floating-point files hold 0..1. Of an animation or a file of several pages the first is read; a PIL image
    is taken at the frame where it stands. Data sets have :func:`torchdcn.data.images.read_image`, which keeps
    the annotations' orientation.

    Args:
        image: A path, a PIL image, an ``[H, W, 3]`` uint8 array (RGB), or a ``[3, H, W]`` tensor, uint8 or
            floating point in 0..1.

    Returns:
        The picture; the same memory where ``image`` is such an array already.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file is not a picture, or is damaged.
        TypeError: ``image`` is none of these kinds.
        ValueError: Wrong shape, dtype or range, or more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (a file is
            refused before it is decoded).

    Example:
        >>> import numpy as np
        >>> from torchdcn.images import load_image
        >>> load_image(np.zeros((48, 64, 3), np.uint8)).shape
        (48, 64, 3)
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, "the PIL image")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise TypeError(
        "image: expected a path, a PIL image, an [H, W, 3] uint8 array or a [3, H, W] tensor,"
        f" got {type(image).__name__}"
    )


def _from_file(given: str | os.PathLike[str]) -> NDArray[np.uint8]:
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
            return _from_pil(opened, str(path))


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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"image: cannot read {what}: {reason}") from error


def _from_pil(picture: Image.Image, what: str) -> NDArray[np.uint8]:
    _check_pixels(picture.height, picture.width, what)
    with _reading(what):
        upright = ImageOps.exif_transpose(picture)
        mode = upright.mode
        if mode.startswith("I") or mode == "F":
            values = np.asarray(upright)
        else:
            if mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")  # straight to RGB makes Pillow warn
            elif mode == "La":  # gray times its alpha, which Pillow turns to nothing but LA
                upright = upright.convert("LA")
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    gray = _to_eight_bits(values, mode, what)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _to_eight_bits(gray: NDArray[Any], mode: str, what: str) -> NDArray[np.uint8]:
    top = 1.0 if mode == "F" else 65535.0
    low, high = float(gray.min()), float(gray.max())
    if not (low >= 0 and high <= top):
        raise ValueError(f"image: {what}: expected values in 0..{top:g} for PIL mode {mode}, got {low:g}..{high:g}")
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
