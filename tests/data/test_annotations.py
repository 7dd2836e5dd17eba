from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from torchdcn.data.annotations import check_annotations, id_fault, read_annotations

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Folder


def faults(content: Any) -> list[str]:
    return check_annotations(content).faults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "not a JSON file"),
        ("", "not a JSON file"),
        ("[1, 2]", "expected a JSON object with the lists images, categories, annotations"),
        ('{"images": [], "annotations": []}', "the list categories is missing"),
        ('{"images": {}, "annotations": [], "categories": []}', "the list images is missing"),
    ],
)
def test_what_is_no_annotation_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances_train.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such annotation file"):
        read_annotations(tmp_path / "none.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "instances_train.json"
    path.write_bytes(b"\xff\xfe\x00\x81{")
    with pytest.raises(ValueError, match="not a JSON file"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "annotation 1: its image_id 99 is not among the images"),
        ({"category_id": 5}, "annotation 1: its category_id 5 is not among the categories"),
        ({"category_id": [3]}, "annotation 1: category_id: expected an integer as id, got [3]"),
        ({"category_id": "44"}, "annotation 1: category_id: expected an integer as id, got '44'"),
        ({"image_id": None}, "annotation 1: image_id: expected an integer or text as id, got None"),
        ({"image_id": True}, "annotation 1: image_id: expected an integer or text as id, got True"),
        (
            {"image_id": "7"},
            "its image_id '7' is not among the images (there is 7, which is a number, and this is text",
        ),
        ({"bbox": [1, 2, 3]}, "annotation 1: expected bbox as four numbers x, y, width, height, got [1, 2, 3]"),
        ({"bbox": [1, 2, float("nan"), 3]}, "annotation 1: expected bbox as four numbers"),
        ({"bbox": ["1", 2, 3, 4]}, "annotation 1: expected bbox as four numbers"),
        ({"area": "big"}, "annotation 1: expected area as a number, got 'big'"),
        ({"iscrowd": 2}, "annotation 1: expected iscrowd to be 0 or 1, got 2"),
        ({"iscrowd": None}, "annotation 1: expected iscrowd to be 0 or 1, got None"),
        ({"iscrowd": "1"}, "annotation 1: expected iscrowd to be 0 or 1, got '1'"),
        ({"area": None}, "annotation 1: expected area as a number, got None"),
        ({"segmentation": "mask.png"}, "annotation 1: segmentation: expected a list of polygons or an RLE"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "annotation 1: segmentation: expected polygons, lists of x, y"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 1: segmentation: expected polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "annotation 1: segmentation: expected polygons"),
        ({"segmentation": {"size": [12, 8], "counts": "a"}}, "expected an RLE of size [8, 12] as its image"),
        ({"segmentation": {"size": [8, 12]}}, "expected the counts of an RLE as a string or integers"),
        ({"segmentation": {"size": [8, 12], "counts": [5, -1, 92]}}, "expected the counts of an RLE"),
        ({"segmentation": {"size": [8, 12], "counts": [5, 6]}}, "its RLE covers 11 pixels, its image has 96"),
        ({"segmentation": {"size": [8, 12], "counts": "zzzzz~~~~"}}, "annotation 1: segmentation: its RLE is damaged"),
        ({"segmentation": {"size": [8, 12], "counts": "R2"}}, "its RLE covers 66 pixels, its image has 96"),
    ],
)
def test_each_fault_is_named_with_the_annotations_id(folder: Folder, change: dict[str, Any], message: str) -> None:
    folder.add([[1, 1, 4, 1, 4, 4]])
    assert faults(folder.content) == []
    folder.content["annotations"][0] |= change
    found = faults(folder.content)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", {"width": 0}, "image 7: expected width and height as integers above 0, got 0 x 8"),
        ("images", {"height": "8"}, "image 7: expected width and height as integers above 0, got 12 x '8'"),
        ("images", {"file_name": 3}, "image 7: file_name is not a string: 3"),
        ("images", {"id": None}, "images[0]: expected an integer or text as id, got None"),
        ("images", {"id": 7.5}, "images[0]: expected an integer or text as id, got 7.5"),
        ("images", {"id": [7]}, "images[0]: expected an integer or text as id, got [7]"),
    ],
)
def test_faults_of_images_are_named(folder: Folder, name: str, change: dict[str, Any], message: str) -> None:
    folder.content[name][0] |= change
    assert faults(folder.content) == [message]


def test_missing_keys_and_repeated_ids_are_named(folder: Folder) -> None:
    folder.add(id=5)
    folder.add(id=5)
    assert faults(folder.content) == ["annotations: the id 5 is there twice"]
    del folder.content["annotations"][1]["bbox"]
    assert faults(folder.content) == ["annotations[1] (id 5): the key bbox is missing"]
    folder.content["annotations"][1] = 3
    assert faults(folder.content) == ["annotations[1]: expected a JSON object, got 3"]


def test_entries_that_are_no_use_are_left_aside_and_the_others_are_judged(folder: Folder) -> None:
    folder.content["images"].append({"id": 8, "file_name": "b.png", "width": "64", "height": 64})
    folder.content["images"].append({"id": 9, "file_name": "c.png", "width": 12})
    folder.content["categories"].append({"id": 5})
    folder.add()
    folder.add(bbox=[1, 2, 3])
    folder.add({"size": [64, 64], "counts": [4096]}, image_id=8)
    folder.add(image_id=9, category_id=5)
    folder.add(category_id=6)
    folder.add()
    del folder.content["annotations"][5]["bbox"]
    usable = check_annotations(folder.content)
    assert usable.faults == [
        "images[2] (id 9): the key height is missing",
        "categories[2] (id 5): the key name is missing",
        "annotations[5] (id 6): the key bbox is missing",
        "image 8: expected width and height as integers above 0, got '64' x 64",
        "annotation 2: expected bbox as four numbers x, y, width, height, got [1, 2, 3]",
        "annotation 5: its category_id 6 is not among the categories",
    ]
    lists = {"images": usable.images, "categories": usable.categories, "annotations": usable.annotations}
    ids = {name: [entry["id"] for entry in entries] for name, entries in lists.items()}
    assert ids == {"images": [7], "categories": [44, 3], "annotations": [1, 3, 4, 5]}


def test_all_faults_come_not_only_the_first(folder: Folder) -> None:
    folder.add(image_id=1)
    folder.add(category_id=1)
    assert len(faults(folder.content)) == 2


def test_a_category_name_that_is_there_twice_is_a_fault(folder: Folder) -> None:
    folder.content["categories"].append({"id": 9, "name": "eel"})
    assert faults(folder.content) == ["categories: the name 'eel' is there 2 times (ids 3, 9)"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_annotations_may_be_in_any_of_unicodes_encodings(folder: Folder, encoding: str, tmp_path: Path) -> None:
    folder.content["categories"][0]["name"] = "tassé"
    path = tmp_path / "instances_train.json"
    path.write_bytes(json.dumps(folder.content, ensure_ascii=False).encode(encoding))
    assert read_annotations(path).categories[0]["name"] == "tassé"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (7, ""),
        (-7, ""),
        (2**70, ""),
        (7.0, ""),
        ("7", ""),
        ("", ""),
        (None, "got None"),
        (True, "got True"),
        (7.5, "got 7.5"),
        (float("nan"), "got nan"),
        ({}, "got {}"),
    ],
)
def test_ids_are_integers_of_any_size_or_text(value: Any, fault: str) -> None:
    assert id_fault(value).endswith(fault)
    assert bool(id_fault(value)) == bool(fault)


def test_an_id_that_is_there_three_times_is_counted(folder: Folder) -> None:
    for _ in range(3):
        folder.add(id="a")
    assert faults(folder.content) == ["annotations: the id 'a' is there 3 times"]


def test_ids_that_differ_only_as_text_are_two(folder: Folder) -> None:
    folder.content["images"] = [{**folder.content["images"][0], "id": image_id} for image_id in ("7", "007", 7)]
    for image_id in ("7", "007", 7):
        folder.add(image_id=image_id)
    assert faults(folder.content) == []


@pytest.mark.parametrize(
    "segmentation", [[[]], [[1, 2, 5, 6]], [[1, 1, 4, 4, 7, 7]], {"size": [8, 12], "counts": [96]}]
)
def test_a_mask_without_area_is_no_fault_but_told(folder: Folder, segmentation: Any) -> None:
    folder.add([[1, 1, 4, 1, 4, 4]])
    folder.add(segmentation)
    found = check_annotations(folder.content)
    assert found.faults == []
    [note] = found.notes
    assert note.startswith("1 object whose mask has no area")
    assert note.endswith("the first: annotation 2")
    assert check_annotations(folder.content, masks=False).notes == []


def test_degenerate_polygons_beside_good_ones_are_counted(folder: Folder) -> None:
    folder.add([[1, 1, 4, 1, 4, 4], [1, 1], [2, 2, 5, 5, 8, 8]])
    found = check_annotations(folder.content)
    assert found.faults == []
    [note] = found.notes
    assert note.startswith("2 polygons of fewer than three points or without area left out of the masks of 1 object")
    assert note.endswith("the first: annotation 1")


@pytest.mark.parametrize("segmentation", ["mask.png", [[1, 2, 3]], {"size": [1, 1], "counts": [1]}, [1, 2, 3, 4]])
def test_without_masks_nobody_looks_at_a_segmentation(folder: Folder, segmentation: Any) -> None:
    folder.add(segmentation)
    assert faults(folder.content)
    assert check_annotations(folder.content, masks=False).faults == []


def roboflow(folder: Folder, names: tuple[str, str, str]) -> None:
    """Categories as Roboflow writes them: the first groups the others."""
    folder.content["categories"] = [
        {"id": 0, "name": names[0], "supercategory": "none"},
        {"id": 1, "name": names[1], "supercategory": names[0]},
        {"id": 2, "name": names[2], "supercategory": names[0]},
    ]
    folder.add(category_id=1)


@pytest.mark.parametrize("names", [("bolt", "bolt", "nut"), ("parts", "bolt", "nut")])
def test_a_category_that_groups_others_is_left_out_and_told(folder: Folder, names: tuple[str, str, str]) -> None:
    roboflow(folder, names)
    found = check_annotations(folder.content)
    assert found.faults == []
    assert [category["id"] for category in found.categories] == [1, 2]
    assert found.complete
    [note] = found.notes
    assert note.startswith(f"the category '{names[0]}' (id 0) is left out")


def test_a_group_with_objects_stays(folder: Folder) -> None:
    roboflow(folder, ("parts", "bolt", "nut"))
    folder.add(category_id=0)
    found = check_annotations(folder.content)
    assert (len(found.categories), found.notes) == (3, [])


def test_groups_of_groups_are_left_out_too_but_never_all_categories(folder: Folder) -> None:
    roboflow(folder, ("parts", "bolt", "nut"))
    folder.content["categories"][0]["supercategory"] = "things"
    folder.content["categories"].append({"id": 3, "name": "things"})
    assert [category["id"] for category in check_annotations(folder.content).categories] == [1, 2]
    folder.content["categories"] = [{"id": 0, "name": "a", "supercategory": "b"}, {"id": 1, "name": "b"}]
    folder.content["categories"][1]["supercategory"] = "a"
    folder.content["annotations"] = []
    assert len(check_annotations(folder.content).categories) == 2


def test_a_category_that_is_its_own_group_stays(folder: Folder) -> None:
    folder.content["categories"] = [{"id": 1, "name": "person", "supercategory": "person"}]
    found = check_annotations(folder.content)
    assert (len(found.categories), found.notes) == (1, [])
