"""Exports that name no train and val."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from torchdcn.data import CocoDetection
from torchdcn.data.folders import coco_folder
from torchdcn.data.formats.coco import find_split, has_splits
from torchdcn.data.formats.unsplit import find_unsplit, split_by_name, split_note, split_unsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = [f"{number:03d}.jpg" for number in range(20)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def coco(names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    boxes: list[dict[str, Any]] = [
        {"id": i, "image_id": i // 2, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0, "own": i}
        for i in range(2 * len(names))
    ]
    return {
        "info": {"made": "here"},
        "images": [{"id": i, "file_name": name, "width": 8, "height": 6, "own": i} for i, name in enumerate(names)],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "nut"}],
    }


def write(path: Path, names: Iterable[str], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(names) | more))
    return path


def write_pictures(folder: Path, names: Iterable[str] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


EXPORTS = {
    "Label Studio": ("result.json", "images/", "images"),
    "Label Studio on Windows": ("result.json", "images\\", "images"),
    "Label Studio, older": ("result.json", "images\\1/", "images"),
    "Label Studio 1.16": ("result.json", "..\\..\\label-studio\\media\\upload\\4\\", "images"),
    "Label Studio, local files": ("result.json", "/data/local-files/?d=mine/", "images"),
    "CVAT task": ("annotations/instances_default.json", "", "images"),
    "CVAT task with a subset": ("annotations/instances_default.json", "", "images/default"),
    "Supervisely": ("annotations/instances.json", "", "images"),
    "Roboflow": ("_annotations.coco.json", "", "."),
    "FiftyOne": ("labels.json", "", "data"),
    "labelme2coco": ("annotations.json", "JPEGImages/", "JPEGImages"),
    "another labelme2coco": ("dataset.json", "", "."),
    "VIA": ("via_export_coco.json", "", "images"),
    "VIA, with the pictures": ("images/via_export_coco.json", "", "images"),
    "COCO Annotator": ("my_set-3.json", "", "my_set"),
}


@pytest.mark.parametrize(("file", "prefix", "folder"), EXPORTS.values(), ids=EXPORTS)
def test_an_export_is_divided(root: Path, file: str, prefix: str, folder: str) -> None:
    write(root / file, [prefix + name for name in NAMES])
    write_pictures(root / folder)
    found: dict[str, list[Path]] = {}
    for split in ("train", "val", "all"):
        data = CocoDetection(coco_folder(root, split=split), split)
        found[split] = [data.image_path(index) for index in range(len(data))]
        assert all(data.labels(index) == [0, 0] for index in range(len(data)))
    assert found["all"] == [root / folder / name for name in NAMES]
    assert sorted(found["train"] + found["val"]) == found["all"]
    assert 0 < len(found["val"]) < len(found["train"])


def test_the_whole_has_the_files_own_name(root: Path) -> None:
    write(root / "annotations" / "instances_default.json", NAMES)
    write_pictures(root / "images")
    folder = coco_folder(root, split="default")
    assert len(CocoDetection(folder, "default")) == len(NAMES)
    own = {"my_set.json": {"my_set"}, "_my.coco.json": {"my"}, "annotations.json": set(), "instances_all.json": set()}
    for name, names in own.items():
        file = write(root / "set" / name, NAMES)
        write_pictures(root / "set")
        assert set(split_unsplit(file, root / "set")) == {"train", "val", "all", *names}


def test_it_is_told_each_time(root: Path) -> None:
    file = write(root / "result.json", NAMES)
    write_pictures(root / "images")
    parts = split_unsplit(file, root)
    train, val = len(parts["train"]["images"]), len(parts["val"]["images"])
    for split in ("train", "val"):
        for _ in range(2):
            notes = json.loads(find_split(coco_folder(root, split=split), split)[0].read_bytes())["notes"]
            assert notes == [
                f"result.json names no splits: {train} of its 20 pictures are train, {val} val, by a hash of their "
                "names; pictures of one scene can stand on both sides, so give lists of your own for figures that you "
                "publish"
            ]
    assert parts["all"]["notes"] == []


def test_entries_are_kept_as_they_are(root: Path) -> None:
    crowd = {
        "id": 99,
        "image_id": 3,
        "category_id": 1,
        "bbox": [0, 0, 1, 1],
        "segmentation": {"size": [6, 8]},
        "x": "y",
    }
    content = coco(NAMES)
    content["annotations"].append(crowd)
    file = write(root / "result.json", NAMES, **content, licenses=[{"id": 7}])
    write_pictures(root / "images")
    parts = split_unsplit(file, root)
    assert parts["train"]["licenses"] == [{"id": 7}]
    assert parts["val"]["info"] == {"made": "here"}
    assert parts["val"]["categories"] == content["categories"]
    assert not any("orientation" in image for image in parts["all"]["images"])
    for key in ("images", "annotations"):
        both = sorted((*parts["train"][key], *parts["val"][key]), key=lambda entry: entry["id"])
        assert [entry | {"file_name": ""} for entry in both] == [entry | {"file_name": ""} for entry in content[key]]
    for split in ("train", "val"):
        ids = {image["id"] for image in parts[split]["images"]}
        assert {entry["image_id"] for entry in parts[split]["annotations"]} == ids


def test_ids_may_be_text(root: Path) -> None:
    content = coco(NAMES)
    for image in content["images"]:
        image["id"] = f"0{image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"0{entry['image_id']}"
    file = write(root / "result.json", NAMES, **content)
    write_pictures(root / "images")
    parts = split_unsplit(file, root)
    assert [len(parts[split]["annotations"]) / len(parts[split]["images"]) for split in ("train", "val")] == [2, 2]


def test_broken_entries_stay_for_the_reader_to_name(root: Path) -> None:
    content = coco(NAMES)
    content["images"] += [{"id": 50}, 7, {"id": [1], "file_name": 3}]
    content["annotations"] += [{"id": 90, "image_id": 77}, 8, {"id": 91, "image_id": [1]}]
    file = write(root / "result.json", NAMES, **content)
    write_pictures(root / "images")
    train = split_unsplit(file, root)["train"]
    assert train["images"][-3:] == content["images"][-3:]
    assert train["annotations"][-3:] == content["annotations"][-3:]
    for broken in ('{"images": 3, "annotations": []}', '{"images": ['):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"result\.json: ") as caught:
            split_unsplit(file, root)
        assert "\n" not in str(caught.value)


def test_a_picture_of_another_folder_is_taken_only_if_there_is_no_doubt(root: Path) -> None:
    file = write(root / "result.json", ["1/a.jpg", "2/a.jpg", "1/b.jpg", "1/c.jpg"])
    write_pictures(root / "images", ["a.jpg", "b.jpg"])
    parts = split_unsplit(file, root)
    assert [Path(image["file_name"]) for image in parts["all"]["images"]] == [
        root / "images" / "1/a.jpg",
        root / "images" / "2/a.jpg",
        root / "images" / "b.jpg",
        root / "images" / "1/c.jpg",
    ]
    picture = root / "images" / "b.jpg"
    told = f"1 of 4 file names lead nowhere; the pictures of the same last name are taken, as {picture} for 1/b.jpg"
    assert told in parts["train"]["notes"]


def test_without_any_picture_one_line_says_what_was_looked_for(root: Path) -> None:
    file = write(root / "result.json", ["images/my%20cat.jpg", "images/b.jpg"])
    lost = rf"result\.json: none of its 2 pictures is there: {root}/images/my%20cat\.jpg: there is no such image file"
    with pytest.raises(FileNotFoundError, match=rf"{lost}$"):
        split_unsplit(file, root)
    write_pictures(root, ["my cat.jpg"])
    with pytest.raises(FileNotFoundError, match=rf"{lost}; did you mean {root}/my cat\.jpg\?$"):
        split_unsplit(file, root)


def test_folders_that_name_splits_decide(root: Path) -> None:
    names = [f"images/{split}/{name}" for split in ("train", "val", "test") for name in NAMES[:3]]
    file = write(root / "annotations.json", names)
    for split in ("train", "val", "test"):
        write_pictures(root / "images" / split, NAMES[:3])
    parts = split_unsplit(file, root)
    for split in ("train", "val", "test"):
        assert {Path(image["file_name"]).parent.name for image in parts[split]["images"]} == {split}
    assert parts["train"]["notes"] == [
        "annotations.json: the splits of its 9 pictures are those of their folders: 3 train, 3 val, 3 test"
    ]
    file.write_text(json.dumps(coco([*names, "images/x.jpg"])))
    assert "by a hash" in split_unsplit(file, root)["train"]["notes"][0]


def test_a_split_s_own_folder_beside_others_is_said(root: Path) -> None:
    for split in ("train", "valid"):
        write(root / split / "_annotations.coco.json", NAMES)
        write_pictures(root / split)
    notes = split_unsplit(root / "train" / "_annotations.coco.json", root / "train")["val"]["notes"]
    assert f"{root} has the splits train, valid; give that folder to use them" in notes


@pytest.mark.parametrize("number", [2, 3, 5, 20, 1000])
def test_about_one_in_five_is_val_and_never_none(number: int) -> None:
    for start in range(20):
        splits = split_by_name([f"{start}/{i}.jpg" for i in range(number)])
        assert len(splits["train"]) + len(splits["val"]) == number
        assert min(map(len, splits.values())) > 0
    assert number < 1000 or 160 < len(splits["val"]) < 240


def test_one_picture_alone_is_train() -> None:
    assert split_by_name(["a.jpg"])["train"] == ["a.jpg"]
    assert split_by_name([]) == {"train": [], "val": []}


def test_more_pictures_do_not_move_the_others() -> None:
    few = split_by_name([f"{i}.jpg" for i in range(100)])
    more = split_by_name([f"{i}.jpg" for i in reversed(range(200))])
    assert set(few["val"]) <= set(more["val"])
    assert set(few["train"]) <= set(more["train"])


def test_systems_agree_on_the_split_of_a_name() -> None:
    names = [f"images/bäu{i}/{i}.jpg" for i in range(50)]
    expected = split_by_name(names)["val"]
    assert split_by_name([name.replace("/", "\\") for name in names])["val"] == [n.replace("/", "\\") for n in expected]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert split_by_name(decomposed)["val"] == [unicodedata.normalize("NFD", name) for name in expected]
    assert split_by_name(["images/000.jpg", "images/004.jpg", "images/005.jpg"])["val"] == ["images/005.jpg"]


def test_other_annotation_files_that_are_left_out_are_named(root: Path) -> None:
    file = write(root / "result.json", NAMES)
    write(root / "annotations" / "older.json", NAMES)
    write_pictures(root / "images")
    assert find_unsplit(root) == file
    told = "result.json is read, other annotation files are left out: annotations/older.json"
    assert told in split_unsplit(file, root)["train"]["notes"]


def test_a_note_counts_in_words() -> None:
    assert "1 of its 2 pictures is train, 1 val," in split_note("a.json", {"train": ["a"], "val": ["b"]})


@pytest.mark.parametrize(
    "files",
    [
        ["annotations/instances_train.json"],
        ["valid/_annotations.coco.json"],
        ["test.json"],
        ["annotations/instances_day.json", "annotations/instances_night.json"],
        ["a.json", "b.json"],
        ["annotations/captions_default.json"],
    ],
)
def test_what_has_splits_or_several_files_is_not_divided(root: Path, files: list[str]) -> None:
    for file in files:
        write(root / file, NAMES)
    assert find_unsplit(root) is None


@pytest.mark.parametrize("content", ['{"shapes": [], "imagePath": "a.jpg"}', '[{"id": 1}]', "", "{", '{"images": []}'])
def test_other_json_is_not_taken_for_an_export(root: Path, content: str) -> None:
    root.mkdir()
    (root / "result.json").write_text(content)
    assert find_unsplit(root) is None
    assert not has_splits(root)


def test_hidden_files_are_passed_over(root: Path) -> None:
    file = write(root / "result.json", NAMES)
    write(root / "._result.json", NAMES)
    write(root / "annotations" / "._instances_default.json", NAMES)
    assert find_unsplit(root) == file
