from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps

from torchdcn.data.images import read_image
from torchdcn.images import exif_orientation, is_picture, load_image, picture_size, picture_suffixes

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


def tiff(path: Path, values: np.ndarray) -> Path:
    """An uncompressed grey TIFF file of any type of number; Pillow writes only some."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 8 * values.dtype.itemsize), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, kind),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + directory + struct.pack("<I", 0))
    return path


RAMP = np.linspace(0, 1, 24).reshape(4, 6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", (RAMP * 65535).astype(np.uint16)),
        ("a.tif", (RAMP * 65535).astype(np.uint16)),
        ("a.pgm", (RAMP * 65535).astype(np.uint16)),
        ("a.tif", (RAMP * 255).astype(np.uint8)),
        ("a.tif", RAMP.astype(np.float32)),
        ("a.pfm", RAMP.astype(np.float32)),
    ],
)
def test_training_and_detector_read_the_same_pixels(tmp_path: Path, name: str, values: np.ndarray) -> None:
    path = tmp_path / name
    if name == "a.tif":
        tiff(path, values)
    else:
        Image.fromarray(values).save(path)
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, load_image(path))
    np.testing.assert_allclose(pixels[:, :, 0], RAMP * 255, atol=1)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(24).astype(np.int8),
        np.arange(24).astype(
            np.int16
        ),  # refused by its kind, whatever the values: else 8 bits of a CT scan would differ
        np.arange(-12, 12).astype(np.int16),
        np.arange(24).astype(np.uint32),
        np.arange(24).astype(np.int32),
        np.arange(24).astype(np.float32),
        np.full(24, -0.5, np.float32),
        np.full(24, np.nan, np.float32),
    ],
)
def test_pixels_of_no_known_range_are_refused_by_every_reader_in_one_line(tmp_path: Path, values: np.ndarray) -> None:
    path = tiff(tmp_path / "a.tif", values.reshape(4, 6))
    for reader in (read_image, load_image):
        with pytest.raises(ValueError, match=r"a\.tif: .*save the image with unsigned 8 or 16 bits") as caught:
            reader(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^" + re.escape(str(path))):
        read_image(path)


def test_the_exif_turn_is_followed_only_where_the_annotation_was(tmp_path: Path) -> None:
    image = Image.new("RGB", SIZE)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)
    assert read_image(tmp_path / "a.jpg", (4, 6)).shape == (4, 6, 3)
    assert read_image(tmp_path / "a.jpg", (6, 4)).shape == (6, 4, 3)
    assert read_image(tmp_path / "a.jpg", (6, 4), "exif").shape == (6, 4, 3)
    with pytest.raises(ValueError, match=r"a\.jpg: the image has 4 x 6 pixels, its annotation says 6 x 4"):
        read_image(tmp_path / "a.jpg", (4, 6), "exif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(6, 4), (5, 5)])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_a_picture_that_was_labelled_as_shown_is_turned_as_it_is_shown(
    tmp_path: Path, orientation: int, size: tuple[int, int], suffix: str
) -> None:
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    exif = stored.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    stored.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_image(path, shown.shape[:2], "exif"), shown)
    np.testing.assert_array_equal(load_image(path), shown)
    assert picture_size(path) == shown.shape[:2]
    if suffix != "tif":  # Pillow, and so every tool that reads by it, turns those by itself
        np.testing.assert_array_equal(read_image(path, (size[1], size[0])), np.asarray(stored))
        assert exif_orientation(path) == orientation


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


def test_pictures_are_known_by_every_suffix_that_pillow_reads_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in (
        "a.jpg",
        "b.JPEG",
        "c.jp2",
        "d.ppm",
        "e.gif",
        "f.avif",
        "._a.jpg",
        ".b.png",
        "g.txt",
        "h.pdf",
        "i.mpo",
    ):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    shown = sorted(path.name for path in tmp_path.iterdir() if is_picture(path))
    assert shown == ["a.jpg", "b.JPEG", "c.jp2", "d.ppm", "e.gif", "f.avif", "i.mpo"]
    assert not {".txt", ".json", ".xml", ".pdf", ".mp4", ".mpg", ".h5", ".eps"} & picture_suffixes()


def test_a_size_that_cannot_be_read_names_the_file_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for name in ("a.png", "none.png"):
        with pytest.raises(OSError, match=f"^{re.escape(str(tmp_path / name))}: can't be read as an image: ") as caught:
            picture_size(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_the_size_of_a_png_is_known_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda _: pytest.fail("decoded the picture"))
    assert picture_size(tmp_path / "a.png") == (4, 6)


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    stored = Image.new("RGB", (6, 4))
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    chunk, rest = content[start : start + length], content[:start] + content[start + length :]
    end = rest.index(b"IEND") - 4
    path.write_bytes(rest[:end] + chunk + rest[end:])
    assert picture_size(path) == (6, 4)
    assert load_image(path).shape == (6, 4, 3)
    assert exif_orientation(path) == 6
