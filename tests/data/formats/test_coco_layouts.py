"""Layouts of COCO's JSON with splits, as tools export them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from torchdcn.data.formats.coco import find_split, has_splits, list_splits
from torchdcn.data.nearby import resolved

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NAMES = ("a.jpg", "b.jpg")


def write_coco(path: Path, names: Iterable[str] = NAMES, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(names)]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "nut"}]}
    path.write_text(json.dumps(content | more))
    return path


def write_pictures(folder: Path, names: Iterable[str] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


LAYOUTS = {
    "ours": ("annotations/instances_val.json", "val"),
    "COCO": ("annotations/instances_val2017.json", "val2017"),
    "COCO of 2014": ("annotations/instances_val2014.json", "val2014"),
    "COCO with another year": ("annotations/instances_val2019.json", "val2019"),
    "Ultralytics": ("annotations/instances_val2017.json", "images/val2017"),
    "Kaggle, as archives are unpacked": (
        "annotations_trainval2017/annotations/instances_val2017.json",
        "val2017/val2017",
    ),
    "CVAT project": ("annotations/instances_Validation.json", "images/Validation"),
    "CVAT project, pictures together": ("annotations/instances_Validation.json", "images"),
    "CVAT, upper case": ("annotations/instances_VAL.json", "images/VAL"),
    "CVAT tasks": ("val/annotations/instances_default.json", "val/images"),
    "datumaro": ("annotations/instances_val.json", "images/val"),
    "Roboflow": ("valid/_annotations.coco.json", "valid"),
    "Roboflow, pictures apart": ("valid/_annotations.coco.json", "valid/images"),
    "FiftyOne": ("validation/labels.json", "validation/data"),
    "Supervisely": ("val/annotations/instances.json", "val/images"),
    "MMDetection's balloons": ("val/annotation_coco.json", "val"),
    "a file in the split's folder": ("val/annotations.json", "val"),
    "a file of any name in the split's folder": ("val/via_export_coco.json", "val"),
    "PaddleDetection": ("annotations/instance_val.json", "images"),
    "PaddleDetection, other": ("annotations/valid.json", "images"),
    "AutoGluon": ("annotations/val_labels.json", "images"),
    "a name with the split in it": ("annotations/json_annotation_val.json", "images/val"),
    "labels for annotations": ("labels/val.json", "images/val"),
    "labelme2coco": ("val.json", "images"),
    "a file in the folder itself": ("val_annotations.json", "val"),
    "pictures beside the file": ("val.json", "."),
    "capital folders": ("Annotations/instances_val.json", "Images/Val"),
    "a picture folder of another name": ("annotations/instances_val.json", "frames"),
    "pictures with their annotations": ("annotations/val.json", "annotations"),
}


@pytest.mark.parametrize(("file", "pictures"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_found(tmp_path: Path, file: str, pictures: str) -> None:
    wanted = write_coco(tmp_path / file)
    folder = write_pictures(tmp_path / pictures)
    for split in ("val", "valid", "validation"):
        assert find_split(tmp_path, split) == (wanted, folder)
    assert has_splits(tmp_path)
    assert len(list_splits(tmp_path)) == 1


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("file", "pictures"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_split_that_is_missing_names_those_that_are_there(
    tmp_path: Path, file: str, pictures: str, split: str
) -> None:
    write_coco(tmp_path / file)
    write_pictures(tmp_path / pictures)
    with pytest.raises(
        FileNotFoundError, match=r"\.json: there is no such annotation file; splits there: [vV]"
    ) as caught:
        find_split(tmp_path, split)
    assert "\n" not in str(caught.value)
    wanted = str(caught.value).split(": there is")[0]
    assert wanted.startswith(str(tmp_path))
    assert split in wanted.removeprefix(str(tmp_path)).lower()


def test_the_nearest_split_is_suggested(tmp_path: Path) -> None:
    for split in ("Train", "Validation", "night"):
        write_coco(tmp_path / "annotations" / f"instances_{split}.json")
    for typo, meant in (("trian", "Train"), ("validaton", "Validation"), ("nihgt", "night")):
        with pytest.raises(FileNotFoundError, match=rf"splits there: .*; did you mean the split '{meant}'\?"):
            find_split(tmp_path, typo)
    assert list_splits(tmp_path) == ["Train", "Validation", "night"]


def test_two_splits_of_one_layout_do_not_mix(tmp_path: Path) -> None:
    files = {split: write_coco(tmp_path / split / "_annotations.coco.json") for split in ("train", "valid", "test")}
    for split in files:
        write_pictures(tmp_path / split)
    for asked, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert find_split(tmp_path, asked) == (files[split], tmp_path / split)
    assert list_splits(tmp_path) == ["test", "train", "valid"]


def test_a_split_may_have_any_name_in_coco_s_own_layout(tmp_path: Path) -> None:
    wanted = write_coco(tmp_path / "annotations" / "instances_night.json")
    folder = write_pictures(tmp_path / "night")
    assert find_split(tmp_path, "night") == (wanted, folder)


@pytest.mark.parametrize(
    "files",
    [
        ["annotations/instances_val.json", "annotations/instances_val2017.json"],
        ["annotations/instances_val2017.json", "annotations/instances_val2014.json"],
        ["annotations/instances_val.json", "annotations/instances_VAL.json", "annotations/instances_valid.json"],
        ["annotations/instances_val.json", "annotations/instance_val.json"],
        ["annotations/instances_val.json", "val/_annotations.coco.json", "annotations/val.json", "val.json"],
        ["val/_annotations.coco.json", "val/labels.json", "val/annotations.json"],
        ["valid/_annotations.coco.json", "annotations/val.json", "val.json"],
        ["annotations/val.json", "annotations/val_labels.json"],
        ["annotations/val_labels.json", "val.json"],
        ["val.json", "val_labels.json"],
    ],
)
def test_of_two_annotation_files_the_order_of_the_docs_decides(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        write_coco(tmp_path / file)
    write_pictures(tmp_path / "val")
    assert find_split(tmp_path, "val")[0] == tmp_path / files[0]


def test_two_files_that_have_the_split_as_a_part_of_their_name_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations" / "train_small.json")
    write_coco(tmp_path / "annotations" / "train_full.json")
    with pytest.raises(
        ValueError, match=r"train_full\.json and .*train_small\.json are both of the split 'train'; name"
    ):
        find_split(tmp_path, "train")


def test_hidden_files_and_other_tasks_are_passed_over(tmp_path: Path) -> None:
    write_pictures(tmp_path / "val")
    wanted = write_coco(tmp_path / "annotations" / "val.json")
    for name in (
        "._val.json",
        "._instances_val.json",
        "captions_val.json",
        "person_keypoints_val.json",
        "stuff_val.json",
    ):
        write_coco(tmp_path / "annotations" / name)
    write_coco(tmp_path / "__MACOSX" / "val.json")
    (tmp_path / "val.json").write_text('{"shapes": [], "imagePath": "val.jpg"}')
    (tmp_path / "val" / "labels.json").write_text('[{"image": "a.jpg", "annotations": []}]')
    assert find_split(tmp_path, "val") == (wanted, tmp_path / "val")
    assert list_splits(tmp_path) == ["val"]


def test_the_folder_with_the_listed_pictures_is_taken(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "annotations" / "instances_val.json")
    (tmp_path / "val").mkdir()
    folder = write_pictures(tmp_path / "images" / "val2017")
    assert find_split(tmp_path, "val") == (file, folder)


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("images/a.jpg", "images/a.jpg"),
        ("images\\a.jpg", "images/a.jpg"),
        (".\\images\\a.jpg", "images/a.jpg"),
        ("val/a.jpg", "images/val/a.jpg"),
        ("val2017/a.jpg", "val2017/a.jpg"),
        ("../images/a.jpg", "images/a.jpg"),
        ("day/a.jpg", "images/val/day/a.jpg"),
        ("{root}/elsewhere/a.jpg", "elsewhere/a.jpg"),
    ],
)
def test_file_names_may_lead_through_folders(tmp_path: Path, name: str, picture: str) -> None:
    name = name.replace("{root}", str(tmp_path))
    file = write_coco(tmp_path / "annotations" / "instances_val.json", [name])
    write_pictures((tmp_path / picture).parent, ["a.jpg"])
    found, folder = find_split(tmp_path, "val")
    assert found == file
    assert resolved(folder, name).resolve() == tmp_path / picture


def test_one_missing_picture_does_not_mislead(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations" / "instances_val.json", ["gone.jpg", "a.jpg", "b.jpg"])
    (tmp_path / "val").mkdir()
    folder = write_pictures(tmp_path / "images")
    assert find_split(tmp_path, "val")[1] == folder


@pytest.mark.parametrize("pictures", ["{}", "{}2017", "images/{}"])
def test_pictures_of_the_same_names_in_another_split_are_not_taken(tmp_path: Path, pictures: str) -> None:
    names = [f"{number}.jpg" for number in range(10)]
    for split in ("train", "val"):
        write_coco(tmp_path / "annotations" / f"instances_{split}.json", names)
        write_pictures(tmp_path / pictures.format(split), names)
    for number in range(10):
        folder = tmp_path / pictures.format("train")
        (folder / f"{number}.jpg").unlink()
        assert find_split(tmp_path, "train")[1] == folder
        assert find_split(tmp_path, "val")[1] == tmp_path / pictures.format("val")


def test_without_the_listed_pictures_the_first_likely_folder_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations" / "instances_val.json")
    write_pictures(tmp_path / "images", ["other.jpg"])
    write_pictures(tmp_path / "docs", ["other.jpg"])
    assert find_split(tmp_path, "val")[1] == tmp_path / "images"
    (tmp_path / "val").mkdir()
    assert find_split(tmp_path, "val")[1] == tmp_path / "val"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_any_encoding_of_json_is_looked_into(tmp_path: Path, encoding: str) -> None:
    file = write_coco(tmp_path / "annotations" / "val.json", ["ä.jpg"])
    file.write_text(file.read_text(), encoding=encoding)
    write_pictures(tmp_path / "pictures", ["other.jpg"])
    folder = write_pictures(tmp_path / "frames", ["ä.jpg"])
    assert find_split(tmp_path, "val") == (file, folder)


def test_a_large_file_with_its_images_last_is_known(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}
    images = [{"id": 0, "file_name": "a.jpg", "width": 8, "height": 8}]
    content = {"annotations": [box] * 20_000, "categories": [], "images": images}
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    assert file.stat().st_size > 2**20
    folder = write_pictures(tmp_path / "images")
    assert find_split(tmp_path, "train") == (file, folder)


def test_a_broken_file_of_a_sure_name_is_found_for_the_reader_to_name(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "train")
    for name in ("annotations/instances_train.json", "train/_annotations.coco.json"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("{")
        assert find_split(tmp_path, "train") == (file, folder)
        file.unlink()


def test_a_folder_or_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^data: .*nowhere: there is no such folder$"):
        find_split(tmp_path / "nowhere", "train")
    write_coco(tmp_path / "annotations" / "instances_train2017.json")
    with pytest.raises(FileNotFoundError, match="train2017: there is no such folder of images"):
        find_split(tmp_path, "train")


def test_the_folder_of_the_annotation_files_names_the_one_above(tmp_path: Path) -> None:
    write_coco(tmp_path / "annotations" / "instances_train.json")
    write_pictures(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=rf"annotations: a part of the data set {tmp_path}; give that folder"):
        find_split(tmp_path / "annotations", "train")
