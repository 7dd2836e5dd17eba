from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from torchdcn.data.check import check_folder

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Folder

SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]


def both(folder: Folder) -> Path:
    folder.write("val")
    return folder.write("train")


def one_fault(folder: Folder) -> str:
    faults = [fault for fault in check_folder(both(folder)).faults if "instances_train" in fault or "/train/" in fault]
    assert len(faults) == 1, faults
    return faults[0]


def test_a_sound_folder_has_no_faults_and_its_objects_are_counted(folder: Folder) -> None:
    folder.add(SQUARE)
    report = check_folder(both(folder))
    assert report.faults == []
    assert any("1 image, 1 object (cup 1, eel 0)" in line for line in report.counts)


@pytest.mark.parametrize(
    ("bbox", "more", "message"),
    [
        ((2, 1, 0, 3), {}, r"annotation 1 on \S+: its bbox \[2, 1, 0, 3\] has no width or no height"),
        ((2, 1, 11.5, 3), {}, r"annotation 1 on \S+: its bbox .* reaches outside of its image of 12 x 8"),
        ((-3, 1, 4, 3), {}, "reaches outside"),
        ((2, 1, 4, 3), {"area": 0}, "its area is 0, expected above 0"),
        ((2, 1, 4, 3), {"category_id": 5}, "its category_id 5 is not among the categories"),
        ((2, 1, 4, 3), {"image_id": 5}, "its image_id 5 is not among the images"),
        ((2, 1, 4, 3), {"segmentation": {"size": [9, 12], "counts": [108]}}, "expected an RLE of size"),
        ((2, 1, 4, 3), {"segmentation": [[2, 1, 15, 1, 6, 4]]}, "its mask reaches outside"),
    ],
)
def test_a_fault_of_an_object_is_named(folder: Folder, bbox: object, more: dict[str, object], message: str) -> None:
    folder.add(bbox=bbox, **more)
    fault = one_fault(folder)
    assert re.search(message, fault), fault


def test_a_box_that_reaches_outside_by_rounding_is_no_fault(folder: Folder) -> None:
    folder.add(bbox=(8, 4, 4.6, 4.4))
    assert check_folder(both(folder)).faults == []


def test_all_faults_are_reported_at_once(folder: Folder) -> None:
    folder.add(bbox=(2, 1, 0, 3))
    folder.add(category_id=9)
    folder.content["annotations"].append({**folder.content["annotations"][0], "bbox": [50, 1, 2, 2]})
    folder.content["images"].append({"id": 8, "file_name": "b.png", "width": 12, "height": 8})
    root = both(folder)
    (root / "train" / "a.png").write_bytes(b"not a picture")
    (root / "train" / "b.png").unlink()
    found = "\n".join(check_folder(root).faults)
    for part in ("no width", "category_id 9", "the id 1 is there twice", "outside", "a.png: can't be read", "b.png"):
        assert part in found


def test_a_category_without_a_name_that_can_be_one_is_a_fault(folder: Folder) -> None:
    folder.content["categories"][0]["name"] = ["fish"]
    assert any("expected the name as text, got ['fish']" in fault for fault in check_folder(both(folder)).faults)


def test_an_annotation_that_lacks_a_key_hides_no_other_fault(folder: Folder) -> None:
    for number in range(3):
        folder.add(bbox=(1, number, 4, 3))
    folder.content["annotations"][1]["area"] = 0
    del folder.content["annotations"][0]["bbox"]
    folder.content["images"].append({"id": 8, "file_name": "b.png", "width": 12, "height": 8})
    root = both(folder)
    for name in ("a.png", "b.png"):
        (root / "train" / name).write_bytes(b"not a picture")
    report = check_folder(root)
    found = [fault for fault in report.faults if "train" in fault]
    parts = ("(id 1): the key bbox is missing", "annotation 2 on a.png: its area is 0", "a.png: can't", "b.png: can't")
    assert len(found) == len(parts), found
    assert all(part in fault for part, fault in zip(parts, found, strict=True))
    assert "2 images, 2 objects (cup 2, eel 0)" in report.counts[0]


def test_an_image_without_a_size_is_one_fault_and_the_others_are_told_too(folder: Folder) -> None:
    folder.content["images"] += [
        {"id": 8, "file_name": "b.png", "width": "12", "height": 8},
        {"id": 9, "file_name": "c.png", "width": 12, "height": 8},
    ]
    folder.add({"size": [8, 12], "counts": [96]}, image_id=8)
    folder.add(SQUARE, bbox=(2, 1, 0, 3))
    root = both(folder)
    (root / "train" / "c.png").unlink()
    report = check_folder(root)
    found = [fault for fault in report.faults if "train" in fault]
    parts = ("image 8: expected width and height as integers above 0, got '12' x 8", "no width", "c.png: there is no")
    assert len(found) == len(parts), found
    assert all(part in fault for part, fault in zip(parts, found, strict=True))
    assert not any("without annotations" in line for line in report.warnings)


def test_classes_are_not_compared_with_those_that_a_fault_hides(folder: Folder) -> None:
    folder.add()
    folder.write("val")
    del folder.content["categories"][1]["name"]
    [fault] = check_folder(folder.write("train")).faults
    assert "categories[1] (id 3): the key name is missing" in fault


@pytest.mark.parametrize("crowd", [False, True])
def test_train_without_objects_is_a_fault_and_val_a_warning(folder: Folder, crowd: bool) -> None:
    if crowd:
        folder.add(iscrowd=1)
    report = check_folder(both(folder))
    [fault] = report.faults
    assert re.search(r"instances_train\.json: none of the 1 images .*/train/a\.png\) has an object", fault)
    assert any(line.startswith("val: none of the 1 images") for line in report.warnings)


def test_a_picture_of_another_size_is_a_fault(folder: Folder) -> None:
    folder.content["images"][0]["width"] = 13
    folder.add()
    assert "12 x 8 pixels, its annotation says 13 x 8" in one_fault(folder)


def test_a_missing_split_and_a_file_that_is_no_json_are_faults(folder: Folder) -> None:
    root = folder.write("train")
    (root / "annotations" / "instances_train.json").write_text("{")
    faults = check_folder(root).faults
    assert len(faults) == 2
    assert "not a JSON file" in faults[0]
    assert "instances_val.json" in faults[1]


def test_lists_that_are_missing_are_told_alone(folder: Folder) -> None:
    root = both(folder)
    (root / "annotations" / "instances_train.json").write_text('{"images": []}')
    assert any("the list annotations is missing" in fault for fault in check_folder(root).faults)


def test_a_class_of_val_that_train_has_not_is_a_fault(folder: Folder) -> None:
    folder.add()
    folder.write("train")
    folder.content["categories"].append({"id": 50, "name": "fork"})
    root = folder.write("val")
    assert check_folder(root).faults == ["val: the category 'fork' (id 50) is not in train"]


def test_suspicious_counts_and_pictures_are_warned_of(folder: Folder) -> None:
    for number in range(20):
        folder.add(bbox=(1, 1, 4 + number / 10, 3))
    folder.add(bbox=(1, 1, 4, 3))
    folder.add(SQUARE, bbox=(1, 2, 3, 3))
    root = both(folder)
    shutil.copy(root / "train" / "a.png", root / "train" / "c.png")
    report = check_folder(root)
    assert report.faults == []
    found = "\n".join(report.warnings)
    for part in (
        "train: classes without objects: eel",
        "train: the class 'cup' has 22 of all 22 objects",
        "train: annotation 21: the same box and class as annotation 1",
        "train: 21 objects without a mask where others have one, the first: annotation 1",
        "without annotations, as c.png",
        "val: the image a.png is the same file as train's a.png",
    ):
        assert part in found


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        check_folder(tmp_path / "none")
