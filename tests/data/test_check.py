from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from torchdcn.data import CocoDetection
from torchdcn.data.check import check_folder
from torchdcn.evaluation import evaluate_coco

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


def crowd(folder: Folder, category_id: int) -> None:
    folder.add({"size": [8, 12], "counts": [10, 20, 66]}, category_id=category_id, iscrowd=1)


def test_crowds_are_counted_apart_and_a_class_of_crowds_alone_has_no_objects(folder: Folder) -> None:
    folder.add(SQUARE, category_id=3)
    for _ in range(2):
        crowd(folder, 44)
    crowd(folder, 3)
    report = check_folder(both(folder))
    assert report.faults == []
    assert "1 image, 1 object and 3 crowds (cup 0 and 2 crowds, eel 1 and 1 crowd)" in report.counts[0]
    found = "\n".join(report.warnings)
    assert "train: classes without objects: cup" in found
    assert "train: the class 'cup' has no objects: its 2 annotations are crowds (iscrowd = 1)" in found
    assert "train: classes with fewer than 10 objects: eel 1" in found
    assert "'eel' has 1 of all 1 objects" in found


def test_images_of_crowds_alone_have_no_objects(folder: Folder) -> None:
    folder.content["images"] += [{**folder.content["images"][0], "id": i, "file_name": f"{i}.png"} for i in (8, 9)]
    folder.add(SQUARE)
    for image_id in (8, 9):
        folder.add(SQUARE, image_id=image_id, iscrowd=1)
    assert any("2 of 3 images have no objects" in line for line in check_folder(both(folder)).warnings)


def test_a_mask_that_a_crowd_has_not_is_nobodys_business(folder: Folder) -> None:
    folder.add(SQUARE)
    folder.add(iscrowd=1)
    assert check_folder(both(folder), masks=True).faults == []


@pytest.mark.parametrize("segmentation", [[], [[]], [[2, 1, 6, 4]], None])
def test_data_without_masks_has_no_fault_but_for_a_mask_rcnn(folder: Folder, segmentation: object) -> None:
    folder.add(segmentation)
    folder.content["annotations"][0]["segmentation"] = segmentation
    root = both(folder)
    assert check_folder(root).faults == []
    assert check_folder(root, masks=False).faults == []
    faults = check_folder(root, masks=True).faults
    assert len(faults) == 2
    assert all("no object has a mask, which a mask_rcnn model needs" in fault for fault in faults)
    assert not CocoDetection(root, masks=True).has_masks


def test_some_objects_without_a_mask_are_a_fault_for_a_mask_rcnn_alone(folder: Folder) -> None:
    folder.add(SQUARE)
    folder.add(bbox=(1, 1, 3, 3))
    root = both(folder)
    assert check_folder(root, masks=False).faults == []
    assert any("a mask_rcnn model can't" in line for line in check_folder(root).warnings)
    assert all(
        "1 object without a mask where others have one" in fault for fault in check_folder(root, masks=True).faults
    )
    assert check_folder(root, masks=True).faults


def test_damaged_masks_are_no_fault_for_a_model_that_reads_none(folder: Folder) -> None:
    folder.add({"size": [8, 12], "counts": "zzzzz~~~~"})
    root = both(folder)
    assert check_folder(root, masks=False).faults == []
    assert check_folder(root).faults


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_check_passes_training_and_evaluation_read_in_any_encoding(folder: Folder, encoding: str) -> None:
    folder.add(SQUARE)
    root = both(folder)
    for file in (root / "annotations").iterdir():
        file.write_bytes(file.read_text().encode(encoding))
    assert check_folder(root).faults == []
    assert len(CocoDetection(root)[0][1]["boxes"]) == 1
    assert evaluate_coco(root / "annotations" / "instances_val.json", [])["segm"]["AP"] == 0


def turned(folder: Folder, orientation: int, annotated_as_shown: bool = False) -> Path:
    if annotated_as_shown:
        folder.content["images"][0] |= {"width": 8, "height": 12}
    folder.add(bbox=(1, 1, 4, 4))
    root = both(folder)
    for split in ("train", "val"):
        picture = Image.open(root / split / "a.png")
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(root / split / "a.png", exif=exif)
    return root


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_pictures_whose_exif_turn_is_ignored_are_warned_of(folder: Folder, orientation: int) -> None:
    report = check_folder(turned(folder, orientation))
    assert report.faults == []
    assert any("train: 1 image with an EXIF orientation, the first: a.png" in line for line in report.warnings)


@pytest.mark.parametrize(("orientation", "as_shown"), [(1, False), (6, True), (0, False), (9, False)])
def test_upright_pictures_and_those_whose_size_tells_are_not(folder: Folder, orientation: int, as_shown: bool) -> None:
    report = check_folder(turned(folder, orientation, as_shown))
    assert report.faults == []
    assert not any("EXIF" in line for line in report.warnings)


def test_a_grouping_category_is_left_out_and_compared_with_val_without_it(folder: Folder) -> None:
    folder.content["categories"] = [
        {"id": 0, "name": "cup", "supercategory": "none"},
        {"id": 44, "name": "cup", "supercategory": "cup"},
        {"id": 3, "name": "eel", "supercategory": "cup"},
    ]
    folder.add()
    folder.add(category_id=3)
    root = both(folder)
    report = check_folder(root)
    assert report.faults == []
    assert "(cup 1, eel 1)" in report.counts[0]
    assert any("train: the category 'cup' (id 0) is left out" in line for line in report.warnings)
    assert CocoDetection(root).class_names == ("eel", "cup")


def test_ids_may_be_text_for_check_training_and_evaluation(folder: Folder) -> None:
    folder.content["images"] = [{**folder.content["images"][0], "id": i, "file_name": f"{i}.png"} for i in ("7", "007")]
    folder.add(SQUARE, image_id="7", id="first")
    folder.add(SQUARE, image_id="007", id="second", bbox=(1, 1, 5, 5))
    root = both(folder)
    assert check_folder(root).faults == []
    data = CocoDetection(root)
    assert data.image_ids == ["7", "007"]
    assert data[1][1]["boxes"].tolist() == [[1, 1, 6, 6]]
    assert data[1][1]["image_id"] == "007"


def test_pictures_of_both_splits_in_one_folder_are_all_annotated(folder: Folder) -> None:
    folder.add()
    root = both(folder)
    (root / "train").rename(root / "images")
    (root / "val" / "a.png").rename(root / "images" / "b.png")
    (root / "val").rmdir()
    file = root / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("a.png", "b.png"))
    assert not any("without annotations" in line for line in check_folder(root).warnings)
    shutil.copy(root / "images" / "a.png", root / "images" / "c.png")
    shutil.copy(root / "images" / "a.png", root / "images" / "._c.png")
    [warning] = [line for line in check_folder(root).warnings if "without annotations" in line]
    assert warning == f"1 picture in {root}/images without annotations, as c.png"
