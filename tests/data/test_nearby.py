from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest

from torchdcn.data.nearby import missing_file, near_file, resolved

ACCENT = "é"
COMPOSED = unicodedata.normalize("NFC", f"caf{ACCENT}.jpg")
DECOMPOSED = unicodedata.normalize("NFD", f"caf{ACCENT}.jpg")

NEAR = {
    "lower case": ("train/A.JPG", "train/a.jpg"),
    "upper case": ("train/img_1.jpg", "train/IMG_1.JPG"),
    "case of a folder": ("Train/a.jpg", "train/a.jpg"),
    "case of two folders": ("images/train/a.jpg", "Images/TRAIN/A.jpg"),
    "case of a long-gone letter": ("train/STRASSE.jpg", "train/straße.jpg"),
    "NFC": (f"train/{DECOMPOSED}", f"train/{COMPOSED}"),
    "NFD": (f"train/{COMPOSED}", f"train/{DECOMPOSED}"),
    "percent": ("train/my%20cat.jpg", "train/my cat.jpg"),
    "percent on the disk": ("train/my cat.jpg", "train/my%20cat.jpg"),
    "percent twice": ("train/my%2520cat.jpg", "train/my cat.jpg"),
    "percent of UTF-8": ("train/caf%C3%A9.jpg", f"train/{COMPOSED}"),
    "percent and brackets": ("train/a%20%281%29.jpg", "train/a (1).jpg"),
    "percent of a slash": ("images%2Fa.jpg", "images/a.jpg"),
    "plus": ("train/my+cat.jpg", "train/my cat.jpg"),
    "query": ("train/a.jpg?size=1", "train/a.jpg"),
    "underscore": ("train/my_cat.jpg", "train/my cat.jpg"),
    "two spaces": ("train/my cat.jpg", "train/my  cat.jpg"),
    "space at the end": ("train/a.jpg ", "train/a.jpg"),
    "no-break space": ("train/my\N{NO-BREAK SPACE}cat.jpg", "train/my cat.jpg"),
    "byte order mark": ("train/\N{ZERO WIDTH NO-BREAK SPACE}a.jpg", "train/a.jpg"),
    "doubled folder": ("train/a.jpg", "train/train/a.jpg"),
    "folder doubled in vain": ("train/train/a.jpg", "train/a.jpg"),
    "folder too many": ("train/images/a.jpg", "train/a.jpg"),
    "folders too many": ("train/home/me/data/a.jpg", "train/a.jpg"),
    "folder missing": ("train/a.jpg", "train/images/a.jpg"),
    "another folder missing": ("train/a.jpg", "train/2024-05/a.jpg"),
    "folder above missing": ("train/a.jpg", "images/train/a.jpg"),
    "other folder of pictures": ("data/a.jpg", "images/a.jpg"),
    "in the folder above": ("annotations/a.jpg", "a.jpg"),
    "suffix": ("train/a.jpg", "train/a.jpeg"),
    "suffix png": ("train/a.jpg", "train/a.png"),
    "suffix and case": ("train/a.png", "train/A.TIF"),
    "no suffix": ("train/a", "train/a.jpg"),
    "backslashes": ("train\\a.jpg", "train/a.jpg"),
    "Windows path": ("train/C:\\Users\\me\\train\\a.jpg", "train/a.jpg"),
    "all at once": ("train/My%20Cat.jpg", "train/images/my cat.JPEG"),
}


def write(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(("asked", "there"), NEAR.values(), ids=NEAR)
def test_a_near_file_is_named(tmp_path: Path, asked: str, there: str) -> None:
    near = write(tmp_path, there)
    asked_folder = (tmp_path / asked).parent
    if asked_folder.parent == tmp_path and "\\" not in asked and "%2F" not in asked and asked_folder.name != "Train":
        asked_folder.mkdir(exist_ok=True)
    if (tmp_path / asked).exists():
        pytest.skip("the file system knows no difference")
    assert near_file(tmp_path / asked) == near
    line = missing_file(tmp_path / asked)
    assert line.startswith(f"{tmp_path / asked}: there is no such image file; did you mean {near}?")
    assert "\n" not in line


def test_a_unicode_form_that_can_not_be_seen_is_said(tmp_path: Path) -> None:
    write(tmp_path, DECOMPOSED)
    if (tmp_path / COMPOSED).exists():
        pytest.skip("the file system knows no difference")
    assert missing_file(tmp_path / COMPOSED).endswith("(its name is in Unicode's NFD, which looks the same)")


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("train/000003.jpg", "val/000003.jpg"),
        ("train/a.jpg", "train/b.jpg"),
        ("train/a.jpg", "train/.a.jpg"),
        ("train/a.jpg", "train/a.txt"),
        ("train/a.jpg", "train/a.jpg/b.png"),
        ("train/a.jpg", "other/a.jpg"),
        ("train/a\0.jpg", "train/b.jpg"),
        ("train/" + "a" * 300 + ".jpg", "train/b.jpg"),
    ],
)
def test_no_other_picture_is_named(tmp_path: Path, asked: str, there: str) -> None:
    write(tmp_path, there)
    assert near_file(tmp_path / asked) is None
    line = missing_file(tmp_path / asked)
    assert "there is no such image file" in line
    assert "did you mean" not in line


def test_a_picture_of_another_split_is_not_named(tmp_path: Path) -> None:
    write(tmp_path, "train/000002.jpg")
    write(tmp_path, "val/000003.jpg")
    assert near_file(tmp_path / "train" / "000003.jpg") is None


def test_the_most_similar_of_several_is_named(tmp_path: Path) -> None:
    for name in ("A_B.jpg", "a b.JPG", "a_b.JPG", "a_b.png"):
        write(tmp_path, name)
    assert near_file(tmp_path / "a_b.jpg") == tmp_path / "A_B.jpg"
    assert near_file(tmp_path / "a b.jpg") == tmp_path / "a b.JPG"
    assert near_file(tmp_path / "a_b.tif") == tmp_path / "a_b.JPG"


def test_a_folder_and_a_dangling_link_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    assert missing_file(tmp_path / "a.jpg").endswith("a.jpg: there is no such image file; it is a folder")
    (tmp_path / "b.jpg").symlink_to("/nowhere/b.jpg")
    assert missing_file(tmp_path / "b.jpg").endswith("; it is a link to /nowhere/b.jpg, which is not there")


def test_a_file_that_comes_later_is_found(tmp_path: Path) -> None:
    assert near_file(tmp_path / "a.jpg") is None
    write(tmp_path, "a.JPG")
    deadline = time.monotonic() + 10
    while near_file(tmp_path / "a.jpg") is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_relative_path_is_answered_by_a_relative_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "train/a.JPG")
    assert near_file(Path("train/a.jpg")) == Path("train/a.JPG")
    assert near_file(Path("a.JPG")) == Path("train/a.JPG")


def test_thousands_of_missing_pictures_take_seconds(tmp_path: Path) -> None:
    for number in range(2000):
        write(tmp_path, f"train/{number:06d}.png")
    start = time.monotonic()
    lines = [missing_file(tmp_path / "train" / f"{number}.jpg") for number in range(5000)]
    assert time.monotonic() - start < 30  # 1 s on two cores; minutes where each one lists the folder
    assert not any("did you mean" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [
        ("a.jpg", None, "a.jpg"),
        ("images/a.jpg", None, "images/a.jpg"),
        ("images\\a.jpg", None, "images/a.jpg"),
        ("images\\day\\a.jpg", "images/day/a.jpg", "images/day/a.jpg"),
        (".\\a.jpg", "a.jpg", "a.jpg"),
        ("..\\images\\a.jpg", None, "../images/a.jpg"),
        ("\\images\\a.jpg", "images/a.jpg", "images/a.jpg"),
        ("images\\a.jpg", "images\\a.jpg", "images\\a.jpg"),
    ],
)
def test_backslashes_separate_folders_unless_a_file_has_the_name(
    tmp_path: Path, name: str, there: str | None, expected: str
) -> None:
    if there is not None:
        write(tmp_path, there)
    assert resolved(tmp_path, name) == tmp_path / expected


def test_an_absolute_name_stays(tmp_path: Path) -> None:
    assert resolved(tmp_path, "/data/a.jpg") == Path("/data/a.jpg")
