from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from torchdcn.images import fit_size, load_image, resize

if TYPE_CHECKING:
    from pathlib import Path


def picture(height: int = 30, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_paths_pil_images_arrays_and_tensors_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = picture()
    file = tmp_path / "picture.png"
    Image.fromarray(pixels).save(file)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    same: list[Any] = [file, str(file), Image.open(file), pixels, tensor, tensor / 255, tensor.double() / 255]
    for image in same:
        loaded = load_image(image)
        np.testing.assert_array_equal(loaded, pixels)
        assert loaded.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_and_pil_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = picture()
    inverse = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # PIL's Transpose that undoes what the viewer will do
    stored = Image.fromarray(upright)
    if orientation != 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    stored.save(file, exif=exif)
    np.testing.assert_array_equal(load_image(file), upright)
    np.testing.assert_array_equal(load_image(Image.open(file)), upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    rgb = Image.fromarray(picture())
    converted = Image.merge("LAB", rgb.split()) if mode == "LAB" else rgb.convert(mode)
    loaded = load_image(converted)
    assert loaded.shape == (30, 40, 3)
    np.testing.assert_array_equal(loaded, np.asarray(converted.convert("RGB")))
    if mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        file = tmp_path / "file.tiff"
        converted.save(file)
        np.testing.assert_array_equal(load_image(file), loaded)


def test_transparent_palettes_are_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "transparent.png"
    Image.fromarray(picture()).convert("P").save(file, transparency=bytes(range(256)))
    assert load_image(file).shape == (30, 40, 3)
    assert not recwarn.list


def test_cmyk_jpegs_are_not_inverted(tmp_path: Path) -> None:
    pixels = np.full((32, 32, 3), (200, 120, 40), np.uint8)
    file = tmp_path / "print.jpg"
    Image.fromarray(pixels).convert("CMYK").save(file, quality=100)
    np.testing.assert_allclose(load_image(file), pixels, atol=3)


def test_premultiplied_gray_is_read() -> None:
    gray = Image.fromarray(picture()).convert("LA")
    np.testing.assert_array_equal(load_image(gray.convert("La")), load_image(gray))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_of_sixteen_bits_the_upper_eight_remain_as_mmdet_reads_png(suffix: str, channels: int, tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 1200 * channels).reshape(30, 40, channels).astype(np.uint16)
    file = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(file), deep)
    loaded = load_image(file)
    assert (loaded == deep[:, :, ::-1] >> 8).all()
    assert loaded.max() == 255
    if suffix == "png":  # of a TIFF, OpenCV's two readers differ from each other
        np.testing.assert_array_equal(loaded, cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_of_any_byte_order_are_the_same(mode: str) -> None:
    deep = np.linspace(0, 65535, 1200).reshape(30, 40).astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    np.testing.assert_array_equal(load_image(Image.frombytes(mode, (40, 30), deep.tobytes()))[:, :, 0], deep >> 8)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_read(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"frames.{suffix}"
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(file) as animation:
        assert animation.n_frames == 2  # type: ignore[attr-defined]
    assert (load_image(file) == (255, 0, 0)).all()


def test_float_files_are_0_to_1_or_refused() -> None:
    ramp = np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)
    np.testing.assert_allclose(load_image(Image.fromarray(ramp))[:, :, 1], ramp * 255, atol=0.51)
    with pytest.raises(ValueError, match=r"the PIL image: .*0\.\.1 for PIL mode F, got 0\.\.7"):
        load_image(Image.fromarray(ramp * 7))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 30, 40), np.uint8), r"\[H, W, 3\].*transpose"),
        (np.zeros((30, 40), np.uint8), r"\[H, W, 3\].*np\.stack"),
        (np.zeros((30, 40, 4), np.uint8), r"\[H, W, 3\].*alpha"),
        (np.zeros((1, 30, 40, 3), np.uint8), r"\[H, W, 3\].*list"),
        (np.zeros((30, 40, 3), np.float32), "uint8"),
        (np.zeros((0, 40, 3), np.uint8), "no pixels"),
        (torch.zeros(30, 40, 3), r"\[3, H, W\]"),
        (torch.zeros(1, 3, 30, 40), "list"),
        (torch.zeros(3, 30, 40, dtype=torch.int64), "int64"),
        (torch.full((3, 30, 40), 255.0), r"0\.\.1, got 255\.\.255"),
        (torch.full((3, 30, 40), float("nan")), r"0\.\.1"),
        (torch.zeros(3, 30, 40, device="meta"), "meta"),
        (torch.zeros(3, 30, 40).to_sparse(), "sparse_coo"),
    ],
)
def test_wrong_arrays_and_tensors_raise_one_line_that_says_what_was_expected(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^image: .*{message}"):
        load_image(image)


def test_other_kinds_raise_a_type_error() -> None:
    with pytest.raises(TypeError, match="image: expected a path"):
        load_image(7)  # type: ignore[arg-type]


def damaged(kind: str, folder: Path) -> Path:
    file = folder / f"{kind}.png"
    Image.fromarray(picture(200, 200)).save(file)
    content = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "garbage":
        file.write_bytes(b"no picture at all")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "flipped":
        file.write_bytes(content[:100] + bytes(255 - b for b in content[100:200]) + content[200:])
    return file


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "flipped"])
def test_damaged_files_raise_one_line_with_their_path(kind: str, tmp_path: Path) -> None:
    file = damaged(kind, tmp_path)
    with pytest.raises(OSError, match=f"{kind}.png") as error:
        load_image(file)
    assert "\n" not in str(error.value)


def test_a_damaged_pil_image_is_named_as_one(tmp_path: Path) -> None:
    with (
        Image.open(damaged("truncated", tmp_path)) as broken,
        pytest.raises(OSError, match="cannot read the PIL image"),
    ):
        load_image(broken)


def test_a_text_that_unpacks_to_gigabytes_is_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    text = b"zTXt", b"note\0\0" + zlib.compress(bytes(80_000_000))
    file.write_bytes(png(30, 40, text, (b"IDAT", zlib.compress(bytes(30 * 121)))))
    with pytest.raises(OSError, match=r"cannot read .*bomb\.png: Decompressed data too large"):
        load_image(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no ordinary file"):
        load_image(tmp_path / "pipe")


def test_missing_files_and_folders_raise_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"https://x\.org/a\.jpg does not exist; download it first"):
        load_image("https://x.org/a.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_image(tmp_path)


def png(height: int, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (header, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge_png(folder: Path, side: int) -> Path:
    """A file of a hundred bytes that claims to have side x side pixels."""
    file = folder / "huge.png"
    file.write_bytes(png(side, side, (b"IDAT", b"")))
    return file


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_huge_files_are_refused_before_they_are_decoded(
    side: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(ValueError, match=r"huge\.png.*"):
        load_image(huge_png(tmp_path, side))
    assert not recwarn.list


def test_the_pixel_limit_holds_for_all_kinds_and_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    one = np.zeros((1, 1, 3), np.uint8)
    huge = np.broadcast_to(one, (10_000, 10_000, 3))  # 300 MB if it were copied
    with pytest.raises(ValueError, match=r"the array has 10000 x 10000 .* limit of"):
        load_image(huge)
    with pytest.raises(ValueError, match=r"the tensor has 10000 x 10000 .* limit of"):
        load_image(torch.zeros(1).expand(3, 10_000, 10_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for image in (picture(), Image.fromarray(picture())):
        with pytest.raises(ValueError, match="limit of 1,000"):
            load_image(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(picture()).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((200, 800), (333, 1333)),
        ((1, 4000), (1, 1333)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_fit_size_is_mmdets_rule(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_size(*size, 800, 1333) == expected
    assert fit_size(*expected, 800, 1333) == expected
    assert fit_size(*size, (480, 800), 1333) == expected


def test_resize_is_opencvs_bilinear_on_uint8() -> None:
    pixels = picture()
    expected = cv2.resize(pixels, (107, 80), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize(pixels, (80, 107)), expected)
    np.testing.assert_array_equal(resize(pixels[:, ::-1], (80, 107)), cv2.resize(pixels[:, ::-1].copy(), (107, 80)))
    assert resize(pixels, (30, 40)) is pixels
