from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from torchdcn.data.images import read_image

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (6, 4)  # width, height


@pytest.mark.parametrize(
    ("mode", "colour", "name"),
    [
        ("RGB", (200, 200, 200), "a.png"),
        ("L", 200, "a.png"),
        ("P", 200, "a.png"),
        ("LA", (200, 9), "a.png"),
        ("RGBA", (200, 200, 200, 9), "a.png"),
        ("CMYK", (0, 0, 0, 55), "a.tif"),
        ("CMYK", (0, 0, 0, 55), "a.jpg"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: int | tuple[int, ...], name: str) -> None:
    image = Image.new(mode, SIZE, colour)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(tmp_path / name)
    pixels = read_image(tmp_path / name)
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - 200).max() <= 1


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: 32-bit float pixels"):
        read_image(tmp_path / "a.tif")


def test_the_exif_turn_is_followed_only_where_the_annotation_was(tmp_path: Path) -> None:
    image = Image.new("RGB", SIZE)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)
    assert read_image(tmp_path / "a.jpg", (4, 6)).shape == (4, 6, 3)
    assert read_image(tmp_path / "a.jpg", (6, 4)).shape == (6, 4, 3)


def test_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the image has 6 x 4 pixels, its annotation says 7 x 4"):
        read_image(tmp_path / "a.png", (4, 7))


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff\xe0"])
def test_garbage_is_an_oserror_of_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"a\.png: can't be read as an image") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
