from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from torchdcn.images import load_image
from torchdcn.plotting import encode_png
from torchdcn.web import pictures
from torchdcn.web.jobs import Result
from torchdcn.web.pictures import MAX_SIDE, RESULTS, NoPictureError, PictureCache, read_picture

from .running import noise

if TYPE_CHECKING:
    from pathlib import Path


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes of file for any number of pixels, all of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_format_is_read_as_the_detector_reads_it(kind: str, tmp_path: Path) -> None:
    content = saved(Image.fromarray(noise()), kind)
    file = tmp_path / "picture"
    file.write_bytes(content)
    pixels, size = read_picture(content)
    assert size == (80, 112)
    assert np.array_equal(pixels, load_image(file))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])  # TIFF: Pillow turns it by itself
def test_a_photo_on_its_side_is_turned_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, size = read_picture(saved(Image.fromarray(noise(40, 60)), kind, exif=exif))
    assert pixels.shape == (60, 40, 3)
    assert size == (60, 40)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_shrunk(kind: str) -> None:
    pixels, size = read_picture(saved(Image.fromarray(noise(400, 2000)), kind))
    assert pixels.shape == (320, MAX_SIDE, 3)
    assert size == (400, 2000)
    assert abs(pixels[120, 600].astype(int) - (220, 90, 40)).max() < 25  # inside the first patch still


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "the file is empty"),
        (b"not a picture" * 50, 415, "expected one of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "expected one of"),
        (encode_png(noise())[:900], 422, "damaged"),
        (saved(Image.fromarray(noise()), "JPEG")[:700], 422, "damaged"),
        (png_that_claims(20_000, 20_000), 413, "pixels"),
        (png_that_claims(100_000, 100_000), 413, "pixels"),
        (png_that_claims(6_000, 6_700), 413, "6000 x 6700 = 40,200,000 pixels"),
        (png_that_claims(0, 10), 415, "image: "),
    ],
    ids=["empty", "text", "eps", "half a png", "half a jpeg", "bomb", "larger bomb", "just too large", "no pixels"],
)
def test_what_is_no_picture_is_refused(content: bytes, status: int, message: str) -> None:
    with pytest.raises(NoPictureError, match=message) as caught:
        read_picture(content)
    assert caught.value.status == status
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(NoPictureError, match="pixels"):
        read_picture(png_that_claims(9_000, 9_000))


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 2**20)
    with pytest.raises(NoPictureError, match="more than 1 MB"):
        read_picture(b"\0" * (2**20 + 1))


def test_the_cache_keeps_the_newest_and_what_is_used() -> None:
    cache = PictureCache(capacity=2)
    first, second = (cache.add(noise(seed=seed), (80, 112)) for seed in range(2))
    cache.get(first.id)
    third = cache.add(noise(), (80, 112))
    assert cache.get(first.id) is first
    assert cache.get(third.id) is third
    with pytest.raises(KeyError):
        cache.get(second.id)
    assert len({first.id, second.id, third.id}) == 3


def test_a_picture_keeps_the_newest_results_and_what_is_used() -> None:
    picture = PictureCache().add(noise(), (80, 112))
    picture.store("first", Result({}))
    for number in range(RESULTS - 1):
        picture.store(str(number), Result({"number": number}))
    assert picture.cached("first") is not None
    picture.store("last", Result({}))
    assert picture.cached("first") is not None
    assert picture.cached("0") is None
    assert len(picture.results) == RESULTS
