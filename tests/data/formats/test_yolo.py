"""YOLO's lines, and which labels belong to which picture."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from torchdcn.data import open_dataset
from torchdcn.data.check import check_folder
from torchdcn.data.formats import LabelsError
from torchdcn.data.formats.yolo import YoloFolder

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Tree

BOX = "0 0.5 0.5 0.25 0.5"


def objects(tree: Tree, lines: str | bytes, split: str = "train") -> list[dict]:
    """What a.txt says, read alone."""
    tree.text("train/labels/a.txt", lines)
    folder = YoloFolder(tree.root)
    return folder.read(*folder.splits[split].pairs[0]).objects


def labels(tree: Tree, split: str = "train") -> dict[str, list[int]]:
    """The classes on each picture, by its path in the folder."""
    dataset = open_dataset(tree.root, split, masks=False)
    paths = [dataset.image_path(index).relative_to(tree.root).as_posix() for index in range(len(dataset))]
    return {path: dataset.labels(index) for index, path in enumerate(paths)}


def test_boxes_become_pixels(yolo: Tree) -> None:
    dataset = open_dataset(yolo.root, "train")
    assert dataset.class_names == ("cup", "eel")
    assert len(dataset) == 2
    image, target = dataset[0]
    assert image.shape == (3, 20, 40)
    assert target["labels"].tolist() == [1, 0]
    np.testing.assert_allclose(target["boxes"], [[15, 5, 25, 15], [0, 0, 8, 8]], atol=1e-4)
    assert target["area"].tolist() == [100, 64]
    assert dataset.labels(1) == []
    assert open_dataset(yolo.root, "val").labels(0) == [0]
    assert not dataset.has_masks


def test_polygons_become_masks(yolo: Tree) -> None:
    yolo.text("train/labels/a.txt", "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    dataset = open_dataset(yolo.root, "train")
    assert dataset.has_masks
    target = dataset[0][1]
    mask = target["masks"][0]
    assert mask.shape == (20, 40)
    assert mask[6:14, 11:19].all()
    assert int(mask.sum()) == pytest.approx(110, abs=12)
    assert target["boxes"].tolist() == [[10, 5, 20, 15]]
    assert target["area"].tolist() == [100]


@pytest.mark.parametrize(
    "lines",
    [
        "1 0.5 0.5 0.25 0.5",
        "1.0 0.5 0.5 0.25 0.5\n",
        "1\t0.5\t0.5\t0.25\t0.5\n",
        "  1   0.5 0.5 0.25   0.5  \r\n\r\n",
        "\n \n1 0.5 0.5 0.25 0.5\n\n",
        "1 5e-1 .5 0.25 +0.5\n",
        "1 0.5 0.5 0.25 0.5\n".encode("utf-8-sig"),
        "1 0.5 0.5 0.25 0.5\r\n".encode("utf-16"),
    ],
    ids=["no end", "class 1.0", "tabs", "CRLF and spaces", "blank lines", "exponent", "byte order mark", "UTF-16"],
)
def test_a_line_is_read_however_it_is_written(yolo: Tree, lines: str | bytes) -> None:
    [found] = objects(yolo, lines)
    assert (found["class"], found["bbox"]) == ("eel", [15, 5, 10, 10])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1 0.5 0.5", "got 3 numbers"),
        ("1", "got 1 number"),
        (f"{BOX} 0.9", "got 6 numbers"),
        (f"{BOX} 0.9 0.9 0.9", "got 8 numbers"),
        ("7 0.5 0.5 0.25 0.5", "expected a class from 0 to 1, as names has 2, got 7"),
        ("2 0.5 0.5 0.25 0.5", "got 2"),
        ("-1 0.5 0.5 0.25 0.5", "expected a class as a whole number from 0, got -1"),
        ("0.5 0.5 0.5 0.25 0.5", "expected a class as a whole number from 0, got 0.5"),
        ("nan 0.5 0.5 0.25 0.5", "expected a class as a whole number from 0, got nan"),
        ("inf 0.5 0.5 0.25 0.5", "expected a class as a whole number from 0, got inf"),
        ("cup 0.5 0.5 0.25 0.5", "expected numbers: could not convert string to float: 'cup'"),
        ("0,0.5,0.5,0.25,0.5", "expected numbers"),
        ("0 nan 0.5 0.25 0.5", "got nan"),
        ("0 0.5 0.5 inf 0.5", "got inf"),
        ("0 0.5 0.5 -0.25 0.5", "expected fractions of the picture in 0..1, got -0.25"),
        ("0 0.5 0.5 -0.005 0.5", "expected a width and a height of 0 or more, got -0.005 and 0.5"),
        ("0 20 10 10 5", "expected fractions of the picture in 0..1, got 20 (pixels must be divided"),
        ("0 0.5 1.02 0.1 0.1", "got 1.02"),
        ("0 0.1 0.1 0.2 0.1 30 0.2", "got 30"),
        ("0 0.1 0.1 0.2 0.1 nan 0.2", "got nan"),
    ],
)
def test_a_line_that_cannot_be_is_named(yolo: Tree, line: str, fault: str) -> None:
    with pytest.raises(LabelsError) as caught:
        objects(yolo, f"{BOX}\n\n{line}\n")
    [found] = caught.value.faults
    assert found.startswith(f"{yolo.root}/train/labels/a.txt: line 3: expected ")
    assert fault in found
    assert found in check_folder(yolo.root).faults


def test_fractions_may_be_outside_by_rounding(yolo: Tree) -> None:
    [box, polygon] = objects(yolo, "0 0.5 0.5 1.000001 1\n1 -0.000001 0 1.004 0 1.004 1\n")
    assert box["bbox"] == pytest.approx([0, 0, 40, 20], abs=1e-3)
    assert polygon["bbox"] == pytest.approx([0, 0, 40.16, 20], abs=1e-3)


def test_all_labels_that_cannot_be_read_are_named_at_once(yolo: Tree) -> None:
    yolo.text("train/labels/a.txt", "1 0.5 0.5\n7 0.5 0.5 0.25 0.5\n")
    yolo.text("train/labels/b.txt", b"\xff\xfe\x00")
    (yolo.root / "train/images/b.png").write_bytes(b"no picture")
    (yolo.root / "valid/images/c.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.txt.*\(and 3 more: torchdcn train --check names all\)$") as caught:
        open_dataset(yolo.root, "train")
    names = ("a.txt: line 1", "a.txt: line 2", "b.png: can't be read as an image", "b.txt: not a text file")
    assert [name in fault for name, fault in zip(names, caught.value.faults, strict=True)] == [True] * 4
    assert not any("\n" in fault for fault in caught.value.faults)
    with pytest.raises(ValueError, match=r"c\.png: can't be read as an image"):
        open_dataset(yolo.root, "val")


def test_a_converted_box_beyond_its_picture_is_named_with_the_picture(yolo: Tree) -> None:
    yolo.text("train/labels/b.txt", "0 0.9 0.5 0.5 0.5\n")
    [fault] = check_folder(yolo.root).faults
    assert f"on {yolo.root}/train/images/b.png: its bbox" in fault
    assert "reaches outside of its image of 40 x 20" in fault


def test_a_degenerate_polygon_is_handed_on(yolo: Tree) -> None:
    [point] = objects(yolo, "0 0.5 0.5 0.5 0.5 0.5 0.5\n")
    assert (point["bbox"], point["area"]) == ([20, 10, 0, 0], 0)
    assert point["segmentation"] == [[20, 10] * 3]


def test_of_pose_lines_the_boxes_are_read(yolo: Tree) -> None:
    yolo.text("data.yaml", "train: train/images\nnames: [cup]\nkpt_shape: [2, 3]\n")
    pose = f"{BOX} 0.1 0.1 2 900 0.2 0\n"
    assert [found["bbox"] for found in objects(yolo, pose + BOX)] == [[15, 5, 10, 10]] * 2
    with pytest.raises(LabelsError, match="or those and 6 of key points, got 7 numbers"):
        objects(yolo, "0 0.1 0.1 0.2 0.1 0.2 0.2\n")


def test_labels_in_a_folder_of_another_name_are_missed(yolo: Tree) -> None:
    yolo.move("train/labels", "train/label")
    [fault] = check_folder(yolo.root).faults
    assert f"none of the 2 images (the first: {yolo.root}/train/images/a.png) has an object" in fault


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("images/train/a.png", "labels/train/a.txt"),
        ("images/train/day1/a.png", "labels/train/day1/a.txt"),
        ("images/train/day1/cam 2/a.b.JPG", "labels/train/day1/cam 2/a.b.txt"),
        ("images/train/images/a.png", "images/train/labels/a.txt"),
        ("Images/train/a.png", "Labels/train/a.txt"),
        ("images/train/a.png", "images/train/a.txt"),
        ("images/train/day1/a.png", "images/train/day1/a.txt"),
        ("images/train/a.png", "labels/train/a.TXT"),
        ("images/train/IMG_1.PNG", "labels/train/img_1.txt"),
        ("images/train/day1/a.png", "labels/train/a.txt"),
        ("images/train/day1/a.png", "labels/a.txt"),
        ("train/a.png", "labels/a.txt"),
        ("train/a.png", "train/labels/a.txt"),
        ("train/frames/a.png", "train/labels/frames/a.txt"),
        (unicodedata.normalize("NFD", "images/train/é.png"), unicodedata.normalize("NFC", "labels/train/é.txt")),
    ],
)
def test_labels_are_found_in_their_places(tree: Tree, picture: str, label: str) -> None:
    top = picture.split("/")[0]
    tree.text("data.yaml", f"train: {top if top == 'train' else top + '/train'}\nnames: [cup]\n")
    tree.picture(picture)
    tree.text(label, BOX)
    assert labels(tree) == {picture: [0]}
    assert open_dataset(tree.root, "train").notes == []


def test_a_data_set_may_lie_below_a_folder_images(yolo: Tree, tmp_path: Path) -> None:
    tree, other = (type(yolo)(tmp_path / name) for name in ("images/mine", "labels/mine"))
    tree.text("data.yaml", "train: train\nnames: [cup, eel]\n")
    tree.picture("train/a.png", "train/b.png")
    tree.text("labels/a.txt", BOX)
    other.text("train/a.txt", "1 0.5 0.5 0.1 0.1")
    assert labels(tree)["train/a.png"] == [0]


def test_a_flat_folder_of_labels_is_not_taken_where_two_pictures_could_take_it(tree: Tree) -> None:
    tree.text("data.yaml", "train: images/train\nnames: [cup]\n")
    tree.picture("images/train/day1/a.png", "images/train/day2/a.png", "images/train/day2/b.png")
    tree.text("labels/train/a.txt", BOX)
    tree.text("labels/train/b.txt", BOX)
    assert labels(tree) == {
        "images/train/day1/a.png": [], "images/train/day2/a.png": [], "images/train/day2/b.png": [0],
    }  # fmt: skip
    [note] = open_dataset(tree.root, "train").notes
    assert f"1 file ({tree.root}/labels/train/a.txt) of labels left out, which no picture takes" in note


@pytest.mark.parametrize("suffix", [".jp2", ".ppm", ".avif", ".gif", ".JPG", ".jfif", ".mpo", ".tga", ".dib"])
def test_every_suffix_that_pillow_reads_is_a_picture(tree: Tree, suffix: str) -> None:
    tree.text("data.yaml", "train: images\nnames: [cup]\n")
    (tree.root / "images").mkdir()
    kind = {".jfif": "JPEG", ".mpo": "JPEG"}.get(suffix)
    Image.new("RGB", (40, 20)).save(tree.root / f"images/a{suffix}", format=kind)
    tree.text("labels/a.txt", BOX)
    assert labels(tree) == {f"images/a{suffix}": [0]}


def test_hidden_files_and_folders_are_passed_over(yolo: Tree) -> None:
    yolo.text("train/images/._a.png", b"\0\5\x16\7\0\2\0\0Mac OS X")
    yolo.text("train/labels/._a.txt", b"\0\5\x16\7\0\2\0\0Mac OS X")
    yolo.text("train/images/.DS_Store", b"\0")
    yolo.text("train/images/.thumbs/a.png", b"\0")
    yolo.text("__MACOSX/train/images/._a.png", b"\0")
    yolo.text("train/images/__MACOSX/b.png", b"\0")
    assert labels(yolo) == {"train/images/a.png": [1, 0], "train/images/b.png": []}
    assert check_folder(yolo.root).faults == []
    assert open_dataset(yolo.root, "train").notes == []


def test_what_is_left_out_or_doubtful_is_counted_and_told(yolo: Tree) -> None:
    for name in ("x.txt", "y.txt", "deep/z.txt"):
        yolo.text(f"train/labels/{name}", BOX)
    for name in ("labels/classes.txt", "labels/notes.txt", "labels/README.dataset.txt", "images/Thumbs.db"):
        yolo.text(f"train/{name}", "cup\neel\n")
    yolo.picture("train/images/a.jpg")
    for name in ("p.heic", "q.heic", "r.svg", "scan"):
        yolo.text(f"train/images/{name}", "?")
    notes = open_dataset(yolo.root, "train").notes
    root = yolo.root / "train"
    assert notes == [
        f"{yolo.root}/data.yaml: {note}"
        for note in (
            f"4 files (the first: {root}/images/p.heic) left out, which are not read as pictures: "
            ".heic 2, .svg 1, no suffix 1",
            f"1 file ({root}/labels/a.txt) of labels taken by several pictures each, as by a.jpg and a.png",
            f"3 files (the first: {root}/labels/deep/z.txt) of labels left out, which no picture takes",
        )
    ]
    assert any("which no picture takes" in warning for warning in check_folder(yolo.root).warnings)


def test_broken_links_are_faults(yolo: Tree) -> None:
    (yolo.root / "train/images/d.png").symlink_to("/nowhere/d.png")
    (yolo.root / "train/labels/b.txt").symlink_to("/nowhere/b.txt")
    with pytest.raises(LabelsError) as caught:
        open_dataset(yolo.root, "train")
    assert [fault.split(":")[0].rsplit("/", 1)[1] for fault in caught.value.faults] == ["b.txt", "d.png"]


def test_linked_folders_are_followed_without_end(yolo: Tree) -> None:
    yolo.picture("elsewhere/d.png")
    (yolo.root / "train/images/more").symlink_to(yolo.root / "elsewhere")
    (yolo.root / "train/images/loop").symlink_to(yolo.root / "train/images")
    assert list(labels(yolo)) == [f"train/images/{name}.png" for name in ("a", "b", "more/d")]
