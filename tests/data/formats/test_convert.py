"""What the conversion of all formats has in common."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from torchdcn.data import open_dataset
from torchdcn.data.check import check_folder
from torchdcn.data.folders import coco_folder
from torchdcn.data.formats import FORMATS, LabelsError, find_format

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Tree


def content(root: Path, split: str = "train") -> dict:
    return json.loads((coco_folder(root, split=split) / "annotations" / f"instances_{split}.json").read_text())


def test_each_format_knows_its_folders_and_no_other(yolo: Tree, voc: Tree, tree: Tree) -> None:
    assert [find_format(each.root).name for each in (yolo, voc)] == ["YOLO", "Pascal VOC"]
    assert [[form.matches(each.root) for form in FORMATS] for each in (yolo, voc)] == [[True, False], [False, True]]
    tree.picture("train/a.png")
    tree.text("train/_annotations.coco.json", "{}")
    assert find_format(tree.root) is None
    assert find_format(tree.root / "none") is None
    yolo.text("annotations/instances_train.json", "{}")
    assert find_format(yolo.root) is None


def test_a_conversion_is_kept_until_a_label_changes(yolo: Tree, tmp_path: Path) -> None:
    first = open_dataset(yolo.root, "train").annotation_file
    assert open_dataset(yolo.root, "val").root == first.parent.parent
    yolo.text("train/labels/b.txt", "0 0.5 0.5 0.25 0.5\n")
    assert open_dataset(yolo.root, "train").labels(1) == [0]
    assert not list((tmp_path / "cache" / "torchdcn").glob(".*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.text("data.yaml", "train: train/images\nval: valid/images\nnames: [cup, mug]\n"),
        lambda tree: tree.picture("train/images/new.png"),
        lambda tree: (tree.root / "train/images/b.png").unlink(),
        lambda tree: Image.new("RGB", (50, 20)).save(tree.root / "train/images/b.png"),
        lambda tree: tree.text("valid/labels/c.txt", ""),
        lambda tree: tree.text("train/labels/orphan.txt", ""),
    ],
    ids=["data.yaml", "new picture", "no picture", "other picture", "label of val", "label that no picture takes"],
)
def test_a_change_makes_a_new_conversion(yolo: Tree, change: object) -> None:
    before = coco_folder(yolo.root)
    assert coco_folder(yolo.root) == before
    change(yolo)
    assert coco_folder(yolo.root) != before


def test_a_list_that_changes_makes_a_new_conversion(voc: Tree) -> None:
    before = coco_folder(voc.root)
    voc.text("ImageSets/Main/val.txt", "c\na\n")
    assert coco_folder(voc.root) != before


def test_converted_pictures_are_labelled_as_shown(yolo: Tree) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:10] = (200, 0, 0)  # the upper half is the right one when shown
    Image.fromarray(stored).save(yolo.root / "train/images/a.jpg", exif=exif, quality=95)
    (yolo.root / "train/images/a.png").unlink()
    yolo.text("train/labels/a.txt", "0 0.75 0.5 0.5 1\n")
    entry = content(yolo.root)["images"][0]
    assert (entry["width"], entry["height"], entry["orientation"]) == (20, 40, "exif")
    image, target = open_dataset(yolo.root, "train")[0]
    assert image.shape == (3, 40, 20)
    x1, y1, x2, y2 = (round(value) for value in target["boxes"][0].tolist())
    assert (x1, y1, x2, y2) == (10, 0, 20, 40)
    assert image[0, y1 + 3 : y2 - 3, x1 + 3 : x2 - 3].float().mean() > 180


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_mirrored_and_upside_down_pictures_are_turned_as_their_labels_were_made(voc: Tree, orientation: int) -> None:
    shown = np.zeros((20, 40, 3), np.uint8)
    shown[:5, :10] = (200, 0, 0)
    stored = {2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1]}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(voc.root / "JPEGImages/a.png", exif=exif)
    voc.xml("Annotations/a.xml", ("eel", 1, 1, 10, 5))
    image, target = open_dataset(voc.root, "train")[0]
    assert target["boxes"].tolist() == [[0, 0, 10, 5]]
    assert (image[0, :5, :10] == 200).all()


def test_faults_of_a_split_do_not_stop_another_one(yolo: Tree, voc: Tree) -> None:
    yolo.text("valid/labels/c.txt", "0 0.5 0.5\n")
    voc.text("Annotations/c.xml", "<annotation>")
    for tree in (yolo, voc):
        notes = open_dataset(tree.root, "train").notes
        assert any("the split val is left out: " in note and "/c." in note for note in notes)
        with pytest.raises(LabelsError, match=r"c\."):
            open_dataset(tree.root, "val")
    yolo.text("valid/labels/c.txt", "0 0.5 0.5 0.25 0.5\n")
    assert open_dataset(yolo.root, "val").labels(0) == [0]
    assert open_dataset(yolo.root, "train").notes == []


def test_a_split_that_was_left_out_is_read_again_when_it_is_asked_for(
    yolo: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permission, say, may change without a trace in the file."""
    reader = find_format(yolo.root)
    read = reader.read

    def read_all_but_c(folder: object, picture: Path, label: Path) -> object:
        if picture.name == "c.png":
            raise LabelsError([f"{picture}: can't be read"])
        return read(folder, picture, label)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "read", read_all_but_c)
        assert len(open_dataset(yolo.root, "train")) == 2
        with pytest.raises(LabelsError, match=r"c\.png: can't be read"):
            open_dataset(yolo.root, "val")
    assert len(open_dataset(yolo.root, "val")) == 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_that_is_not_there_is_said_of_the_folder_that_was_given(yolo: Tree, voc: Tree, split: str) -> None:
    other, place = ("val", "valid") if split == "train" else ("train", "train")
    yolo.text("data.yaml", f"{other}: {place}/images\nnames: [cup, eel]\n")
    for name in {"train", "val"} - {other}:
        (voc.root / "ImageSets" / "Main" / f"{name}.txt").unlink()
    write = f"write one, as in {split}: {split}/images"
    of_yolo = f"{yolo.root}/data.yaml: names no folder with pictures for {split}; {write}; splits there: {other}"
    of_voc = (
        f"{voc.root}: a Pascal VOC folder without pictures for {split}; expected ImageSets/Main/{split}.txt to name"
    )
    for tree, said in ((yolo, of_yolo), (voc, of_voc)):
        with pytest.raises(FileNotFoundError) as caught:
            open_dataset(tree.root, split)
        assert str(caught.value).startswith(said)
        assert str(caught.value).endswith(f"splits there: {other}")
        if split != "test":
            assert any(fault.startswith(said) for fault in check_folder(tree.root).faults)
        assert len(open_dataset(tree.root, other))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_split_is_found_by_each_of_its_names(yolo: Tree, voc: Tree, name: str) -> None:
    assert open_dataset(yolo.root, name).labels(0) == [0]
    assert open_dataset(voc.root, name).labels(0) == [1]


def test_objects_without_a_polygon_among_polygons_are_counted_and_boxes_still_train(yolo: Tree) -> None:
    yolo.text("train/labels/b.txt", "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    dataset = open_dataset(yolo.root, "train", masks=False)
    assert [dataset.labels(index) for index in range(2)] == [[1, 0], [1]]
    first = f"{yolo.root}/train/images/a.png"
    assert any(f"2 of 3 objects, the first on {first}, are boxes without a polygon" in note for note in dataset.notes)
    assert open_dataset(yolo.root, "val", masks=False).notes == []


def test_masks_are_not_unpacked_to_convert_them(yolo: Tree) -> None:
    yolo.text("train/labels/a.txt", "")
    lines = "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n" * 12
    for number in range(20):
        name = f"train/images/{number:02d}.png"
        Image.new("RGB", (2000, 1000)).save(yolo.root / name)
        yolo.text(f"train/labels/{number:02d}.txt", lines)
    one = 2000 * 1000  # bytes of a mask
    tracemalloc.start()
    dataset = open_dataset(yolo.root, "train")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < one
    assert [len(dataset.labels(index)) for index in range(len(dataset))] == [12] * 20 + [0, 0]
    assert dataset[19][1]["masks"][:, 600, 600].tolist() == [1] * 12


def test_progress_counts_the_pictures_of_all_splits(yolo: Tree) -> None:
    seen: list[tuple[int, int]] = []
    coco_folder(yolo.root, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_export_of_one_annotation_file_gets_splits(tree: Tree) -> None:
    images = [{"id": i, "file_name": f"images/{i}.png", "width": 40, "height": 20} for i in range(10)]
    tree.picture(*(image["file_name"] for image in images))
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, 0, 4, 4], "area": 16} for i in range(10)]
    given = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "nut"}]}
    tree.text("result.json", json.dumps(given))
    train, val = (open_dataset(tree.root, split) for split in ("train", "val"))
    assert len(train) + len(val) == 10
    assert len(val)
    assert not set(train.image_ids) & set(val.image_ids)
    for dataset in (train, val):
        image, target = dataset[0]
        assert image.shape == (3, 20, 40)
        assert target["boxes"][0, 0] == dataset.image_ids[0]
        assert any("result.json names no splits" in note for note in dataset.notes)
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(tree.root, "test")
    assert str(caught.value).startswith(f"{tree.root}/result.json: names no splits, and is given those called")
    tree.text("result.json", json.dumps(given | {"images": images[:6], "annotations": objects[:6]}))
    assert len(open_dataset(tree.root, "all")) == 6
