"""Pascal VOC: which pictures and .xml files belong to which split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from torchdcn.data import open_dataset
from torchdcn.data.check import check_folder
from torchdcn.data.formats import LabelsError, find_format
from torchdcn.data.formats.voc import VocFolder

if TYPE_CHECKING:
    from conftest import Tree

BOX = ("eel", 1, 1, 8, 8)


def pictures(tree: Tree, split: str = "train") -> list[str]:
    """The pictures of a split that has no fault, by their path in the folder."""
    found = VocFolder(tree.root).splits[split]
    assert found.faults == []
    return [picture.relative_to(tree.root).as_posix() for picture, _ in found.pairs]


def faults(tree: Tree, split: str = "train") -> list[str]:
    with pytest.raises(LabelsError) as caught:
        open_dataset(tree.root, split)
    return caught.value.faults


def add(tree: Tree, *names: str) -> None:
    for name in names:
        tree.picture(f"JPEGImages/{name}")
        tree.xml(f"Annotations/{name.rsplit('.', 1)[0]}.xml", BOX, filename=name)


def test_boxes_are_zero_based_and_classes_are_those_of_all_splits(voc: Tree) -> None:
    dataset = open_dataset(voc.root, "train")
    assert dataset.class_names == ("cup", "eel")
    assert [dataset.image_path(i).name for i in range(2)] == ["a.png", "b.png"]
    np.testing.assert_allclose(dataset[0][1]["boxes"], [[10, 4, 20, 15]])
    np.testing.assert_allclose(dataset[1][1]["boxes"], [[0, 0, 40, 20]])
    assert dataset.labels(0) == [1]
    val = open_dataset(voc.root, "val")
    assert val.class_names == dataset.class_names
    assert val.labels(0) == [1]


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (["a (1).png", "a (2).png"], "a (1)\na (2)\n"),
        (["my cat.jpg", "my dog.jpg"], "my cat\nmy dog"),
        (["a.png", "b.png"], "a\r\n\r\n  b  \r\n"),
        (["a.png", "b.png"], "\ufeffa\nb\n"),
        (["a.png", "b.png"], "a\nb\n".encode("utf-16")),
        (["a.png", "b.jpg"], "a.png\nb.jpg\n"),
        (["a.png", "b.JPG"], "a.png\nb.jpg\n"),
        (["a.png", "b.png"], "a  1\nb -1\n"),
        (["a.png", "b.png"], "a\t0\nb  1\n"),
        (["a 1.png", "a.png"], "a 1\na\n"),
        (["a.png", "a 1.png"], "a  1\na 1\n"),
        (["a.png", "a -1.png"], "a 1\na -1\n"),
        (["a 1.png", "a 0.png"], "a 1 1\na 0 -1\n"),
        (["a.v2.png", "a.v3.png"], "a.v2\na.v3\n"),
        (["a.v2.png", "a.v3.png"], "a.v2.png\na.v3.png 1\n"),
        (["a.jpg.png", "b.png"], "a.jpg\nb\n"),
        (["day 1/a.png", "day 2/a.png"], "day 1/a\nday 2/a.png\n"),
        (["day1/a.png", "day2/b.png"], "a\nb.png\n"),
        (["day1/a.png", "day2/b.png"], "day1\\a\n.\\day2\\b.png\n"),
        (["a.png", "b.png"], "JPEGImages/a.png\n/home/me/VOC/JPEGImages/b\n"),
        (["图.png", "é.png"], "图\né\n"),
    ],
)
def test_a_line_of_a_list_names_a_picture(tree: Tree, files: list[str], lines: str | bytes) -> None:
    add(tree, *files)
    tree.text("ImageSets/Main/train.txt", lines)
    assert pictures(tree) == [f"JPEGImages/{name}" for name in files]
    assert len(open_dataset(tree.root, "train")) == 2


def test_a_name_that_has_lost_its_picture_is_not_taken_for_a_flagged_one(tree: Tree) -> None:
    add(tree, "a.png", "a 1.png")
    (tree.root / "JPEGImages/a 1.png").unlink()
    tree.text("ImageSets/Main/train.txt", "a 1\n")
    [fault] = faults(tree)
    assert (
        fault
        == f"{tree.root}/ImageSets/Main/train.txt: names a 1, of which there is no picture in {tree.root}/JPEGImages"
    )


def test_pictures_and_labels_that_are_listed_in_vain_are_named_at_once(voc: Tree) -> None:
    open_dataset(voc.root, "train")
    add(voc, "d.png")
    voc.text("ImageSets/Main/train.txt", "a\nb\nd\nA\n")
    (voc.root / "JPEGImages" / "b.png").unlink()
    (voc.root / "Annotations" / "d.xml").unlink()
    (voc.root / "Annotations" / "c.xml").unlink()
    voc.text("Annotations/a.xml", "<annotation>")
    listing, images, annotations = (
        voc.root / name for name in ("ImageSets/Main/train.txt", "JPEGImages", "Annotations")
    )
    assert faults(voc) == [
        f"{listing}: names b, of which there is no picture in {images}",
        f"{listing}: names d, of which there is no d.xml in {annotations}",
        f"{listing}: names A, of which there is no picture in {images}; did you mean a.png?",
        f"{annotations}/a.xml: not an XML file: no element found: line 1, column 12",
    ]
    with pytest.raises(ValueError, match=r"train\.txt: names b, .*and 3 more: torchdcn train --check names all"):
        open_dataset(voc.root, "train")
    assert faults(voc, "val") == [
        f"{voc.root}/ImageSets/Main/val.txt: names c, of which there is no c.xml in {annotations}"
    ]


def test_a_list_of_another_folder_is_one_fault(voc: Tree) -> None:
    voc.text("ImageSets/Main/train.txt", "".join(f"{number:06d}\n" for number in range(500)))
    [fault] = faults(voc)
    assert "names 000000, of which there is no picture" in fault
    assert fault.endswith("nor is one of the 499 others that it names")


def test_every_list_but_those_of_classes_is_a_split(voc: Tree) -> None:
    voc.text("ImageSets/Main/test.txt", "c\n")
    voc.text("ImageSets/Main/trainval.txt", "a\nb\nc\n")
    voc.text("ImageSets/Main/small_train.txt", "a\n")
    voc.text("ImageSets/Main/night.txt", "b\n")
    voc.text("ImageSets/Main/eel_train.txt", "a  1\nb -1\n")
    voc.text("ImageSets/Main/eel_trainval.txt", "a  1\nb -1\nc  0\n")
    voc.text("ImageSets/Main/traffic_light_night.txt", "b -1\n")
    voc.text("ImageSets/Main/._train.txt", b"\0\5\x16\7")
    voc.text("ImageSets/Layout/train.txt", "c\n")
    counts = {name: len(split.pairs) for name, split in VocFolder(voc.root).splits.items()}
    assert counts == {"train": 2, "val": 1, "test": 1, "night": 1, "small_train": 1, "trainval": 3}
    assert open_dataset(voc.root, "night").labels(0) == [0]


def test_lists_may_stand_in_imagesets_itself(voc: Tree) -> None:
    voc.move("ImageSets/Main/train.txt", "ImageSets/train.txt")
    voc.move("ImageSets/Main/val.txt", "ImageSets/val.txt")
    (voc.root / "ImageSets/Main").rmdir()
    assert pictures(voc) == ["JPEGImages/a.png", "JPEGImages/b.png"]


@pytest.mark.parametrize(
    ("name", "line"),
    [("train.txt", "{0}"), ("train_list.txt", "JPEGImages/{0}.png Annotations/{0}.xml"), ("trainval.txt", "{0}.png")],
)
def test_lists_may_stand_in_the_folder_itself(voc: Tree, name: str, line: str) -> None:
    (voc.root / "ImageSets").rename(voc.root.parent / "ImageSets")
    voc.text(name, "".join(f"{line.format(each)}\n" for each in "ab"))
    voc.text("labels.txt", "cup\neel\n")
    assert pictures(voc, name.split(".")[0].split("_")[0]) == ["JPEGImages/a.png", "JPEGImages/b.png"]
    assert len(VocFolder(voc.root).splits) == 1


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("JPEGImages", "annotations"), ("images", "annotations"), ("Images", "ANNOTATIONS"), ("JPEGImages", "JPEGImages")],
)
def test_folders_are_found_by_other_names(voc: Tree, images: str, annotations: str) -> None:
    for name in ("a", "b", "c"):
        voc.move(f"Annotations/{name}.xml", f"new/{name}.xml")
    (voc.root / "Annotations").rmdir()
    voc.move("JPEGImages", images)
    if annotations == images:
        for name in ("a", "b", "c"):
            voc.move(f"new/{name}.xml", f"{images}/{name}.xml")
    else:
        voc.move("new", annotations)
    assert pictures(voc) == [f"{images}/a.png", f"{images}/b.png"]
    assert open_dataset(voc.root, "train").labels(0) == [1]


def test_a_folder_above_stands_for_the_data_set_in_it(voc: Tree, tree: Tree) -> None:
    tree.root.mkdir()
    voc.root.rename(tree.root / "VOC2012")
    assert pictures(tree) == ["VOC2012/JPEGImages/a.png", "VOC2012/JPEGImages/b.png"]


@pytest.mark.parametrize(
    ("picture", "xml"),
    [
        ("{}/{}.png", "{}/{}.xml"),
        ("{}/day 1/{}.png", "{}/day 1/{}.xml"),
        ("{}/images/{}.png", "{}/annotations/{}.xml"),
        ("{}/JPEGImages/x/{}.png", "{}/Annotations/{}.xml"),
        ("images/{}/{}.png", "annotations/{}/{}.xml"),
    ],
)
def test_splits_may_be_folders(tree: Tree, picture: str, xml: str) -> None:
    for name, split in (("a", "train"), ("b", "train"), ("c", "valid"), ("d", "test")):
        tree.picture(picture.format(split, name))
        tree.xml(xml.format(split, name), BOX)
    assert find_format(tree.root) is VocFolder
    assert pictures(tree) == [picture.format("train", name) for name in "ab"]
    assert [open_dataset(tree.root, split).labels(0) for split in ("train", "val", "test")] == [[0]] * 3
    assert open_dataset(tree.root, "train").notes == []


def test_hidden_files_are_passed_over(tree: Tree) -> None:
    for split in ("train", "valid"):
        tree.picture(f"{split}/{split}.png")
        tree.xml(f"{split}/{split}.xml", BOX)
        for name in (f"._{split}.png", f"._{split}.xml", ".DS_Store"):
            tree.text(f"{split}/{name}", b"\0\5\x16\7\0\2\0\0Mac OS X")
    tree.text("__MACOSX/train/._train.png", b"\0")
    assert check_folder(tree.root).faults == []
    assert pictures(tree) == ["train/train.png"]


def test_of_pictures_of_one_name_the_xml_says_which(tree: Tree) -> None:
    add(tree, "a.png")
    tree.picture("JPEGImages/a.jpg")
    tree.text("ImageSets/Main/train.txt", "a\n")
    assert pictures(tree) == ["JPEGImages/a.png"]
    tree.xml("Annotations/a.xml", BOX, filename="C:\\set\\A.JPG")
    assert pictures(tree) == ["JPEGImages/a.jpg"]
    tree.xml("Annotations/a.xml", BOX, filename="other.jpg")
    [fault] = faults(tree)
    assert "names a, of which there are a.jpg and a.png; write the one that is meant with its suffix" in fault
    tree.text("ImageSets/Main/train.txt", "a.png\n")
    assert pictures(tree) == ["JPEGImages/a.png"]


def test_of_pictures_of_one_name_in_a_folder_the_others_are_left_out_and_told(tree: Tree) -> None:
    tree.picture("train/a.png", "train/a.jpg")
    tree.xml("train/a.xml", BOX, filename="a.jpg")
    assert pictures(tree) == ["train/a.jpg"]
    [note] = open_dataset(tree.root, "train").notes
    assert note == f"{tree.root}/train: 1 picture (a.png) left out, as the .xml of that name is of another picture"
    tree.xml("train/a.xml", BOX, filename="x.jpg")
    assert faults(tree) == [
        f"{tree.root}/train/a.xml: its <filename> is none of a.jpg and a.png, which all have its name"
    ]


def test_what_is_left_out_or_doubtful_is_counted_and_told(voc: Tree, tree: Tree) -> None:
    add(voc, "x.png", "y.png")
    voc.text("ImageSets/Main/train.txt", "a\nb\na\na.png\n")
    assert len(open_dataset(voc.root, "train")) == 2
    assert open_dataset(voc.root, "train").notes == [
        f"{voc.root}/ImageSets/Main/train.txt: 2 names (the first: a) there more than once, taken once",
        f"{voc.root}/Annotations: 2 files (the first: x.xml) left out, which no list names",
    ]
    tree.picture("train/a.png", "train/b.png")
    tree.xml("train/a.xml", BOX)
    tree.xml("train/c.xml", BOX)
    dataset = open_dataset(tree.root, "train")
    assert [dataset.labels(index) for index in range(2)] == [[0], []]
    assert dataset.notes == [
        f"{tree.root}/train: 1 picture (b.png) without an .xml, taken to have no objects",
        f"{tree.root}/train: 1 file (c.xml) left out, which have no picture",
    ]


@pytest.mark.parametrize(
    ("picture", "xml"),
    [
        ("JPEGImages/{}.png", "Annotations/{}.xml"),
        ("images/{}.png", "annotations/{}.xml"),
        ("images/{}.png", "images/{}.xml"),
        ("{}.png", "{}.xml"),
    ],
)
def test_pictures_without_lists_get_splits_by_their_names(tree: Tree, picture: str, xml: str) -> None:
    for number in range(10):
        tree.picture(picture.format(number))
        tree.xml(xml.format(number), BOX)
    tree.picture(picture.format("unlabelled"))
    train, val = (open_dataset(tree.root, split) for split in ("train", "val"))
    names = [{dataset.image_path(index).stem for index in range(len(dataset))} for dataset in (train, val)]
    assert names[0] | names[1] == {str(number) for number in range(10)}
    assert names[1]
    assert not names[0] & names[1]
    assert any("names no splits" in note for note in val.notes)
    assert any("1 picture (unlabelled.png) without an .xml, left out" in note for note in train.notes)


@pytest.mark.parametrize("other", ["a.xml", "export/annotations.xml", "annotations.xml"])
def test_other_xml_files_make_no_pascal_voc_folder(tree: Tree, other: str) -> None:
    tree.picture("images/1.png", "train/2.png", "3.png")
    tree.text(other, "<annotations/>")
    assert find_format(tree.root) is None
