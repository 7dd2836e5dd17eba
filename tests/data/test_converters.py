from __future__ import annotations

import builtins
import shutil
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from torchdcn.data import converters, open_dataset
from torchdcn.data.check import check_folder
from torchdcn.data.converters import kind_of_folder

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("supervision", reason="YOLO and VOC folders are read by supervision: pip install supervision")

XML = """<annotation><filename>{name}</filename><size><width>40</width><height>20</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
</object>"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 40, 3), shade, np.uint8)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """As exported by labelling tools: two pictures to train on, of which one has no labels, and one of val."""
    root = tmp_path / "yolo"
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cup, eel]\n")
    for number, name in enumerate(("train/images/a", "train/images/b", "valid/images/c")):
        picture(root / f"{name}.png", 90 + number)
    text(root / "train" / "labels" / "a.txt", "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.2 0.4\n")
    text(root / "valid" / "labels" / "c.txt", "0 0.5 0.5 0.25 0.5\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    objects = {"a": [("eel", 11, 5, 20, 15)], "b": [("cup", 1, 1, 40, 20)], "c": [("eel", 1, 1, 8, 8)]}
    for number, (name, boxes) in enumerate(objects.items()):
        picture(root / "JPEGImages" / f"{name}.png", 90 + number)
        content = "".join(OBJECT.format(*box) for box in boxes)
        text(root / "Annotations" / f"{name}.xml", XML.format(name=f"{name}.png", objects=content))
    text(root / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    text(root / "ImageSets" / "Main" / "val.txt", "c\n")
    return root


def test_yolo_boxes_become_pixels(yolo: Path) -> None:
    dataset = open_dataset(yolo, "train")
    assert kind_of_folder(yolo) == "yolo"
    assert dataset.class_names == ("cup", "eel")
    assert len(dataset) == 2
    image, target = dataset[0]
    assert image.shape == (3, 20, 40)
    assert target["labels"].tolist() == [1, 0]
    np.testing.assert_allclose(target["boxes"], [[15, 5, 25, 15], [0, 0, 8, 8]], atol=1e-4)
    assert dataset.labels(1) == []
    assert open_dataset(yolo, "val").labels(0) == [0]
    assert not dataset.has_masks


def test_yolo_polygons_become_masks(yolo: Path) -> None:
    text(yolo / "train" / "labels" / "a.txt", "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    dataset = open_dataset(yolo, "train")
    assert dataset.has_masks
    mask = dataset[0][1]["masks"][0]
    assert mask.shape == (20, 40)
    assert mask[6:14, 11:19].all()
    assert int(mask.sum()) == pytest.approx(110, abs=12)


def test_voc_boxes_are_zero_based_and_classes_are_those_of_all_splits(voc: Path) -> None:
    dataset = open_dataset(voc, "train")
    assert kind_of_folder(voc) == "voc"
    assert dataset.class_names == ("cup", "eel")
    assert [dataset.image_path(i).name for i in range(2)] == ["a.png", "b.png"]
    np.testing.assert_allclose(dataset[0][1]["boxes"], [[10, 4, 20, 15]])
    np.testing.assert_allclose(dataset[1][1]["boxes"], [[0, 0, 40, 20]])
    assert dataset.labels(0) == [1]
    val = open_dataset(voc, "val")
    assert val.class_names == dataset.class_names
    assert val.labels(0) == [1]


def test_voc_files_beside_their_pictures_are_found(voc: Path) -> None:
    shutil.rmtree(voc / "ImageSets")
    for name, folder in (("a", "train"), ("b", "train"), ("c", "valid")):
        for part, ending in (("JPEGImages", "png"), ("Annotations", "xml")):
            (voc / folder).mkdir(exist_ok=True)
            (voc / part / f"{name}.{ending}").rename(voc / folder / f"{name}.{ending}")
    assert [open_dataset(voc, split).labels(0) for split in ("train", "val")] == [[1], [1]]


def test_a_conversion_is_kept_until_a_label_changes(yolo: Path, tmp_path: Path) -> None:
    first = open_dataset(yolo, "train").annotation_file
    assert open_dataset(yolo, "val").root == first.parent.parent
    text(yolo / "train" / "labels" / "b.txt", "0 0.5 0.5 0.25 0.5\n")
    assert open_dataset(yolo, "train").labels(1) == [0]
    assert not list((tmp_path / "cache" / "torchdcn").glob(".*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.yaml", "train: images\nnames: [cup, eel]\n", "there is no folder images"),
        ("data.yaml", "train: {\n", "data.yaml: not a YAML file"),
        ("data.yaml", "- a\n", "data.yaml: expected names"),
        ("data.yaml", "train: train/images\n", "data.yaml: expected names, a list of the classes, got None"),
        ("train/labels/a.txt", "1 0.5 0.5\n", r"a\.txt"),
        ("train/labels/a.txt", "7 0.5 0.5 0.25 0.5\n", r"a\.png.* 7\b"),
    ],
)
def test_a_fault_is_said_in_one_line(yolo: Path, name: str, content: str, message: str) -> None:
    text(yolo / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(yolo, "train")
    assert "\n" not in str(caught.value)
    assert any("yolo" in fault for fault in check_folder(yolo).faults)


def test_all_labels_that_cannot_be_read_are_named_at_once(yolo: Path) -> None:
    text(yolo / "train" / "labels" / "a.txt", "1 0.5 0.5\n")
    text(yolo / "train" / "labels" / "b.txt", "7 0.5 0.5 0.25 0.5\n")
    (yolo / "valid" / "images" / "c.png").write_bytes(b"no picture")
    faults = check_folder(yolo).faults
    assert [name for name in ("a.txt", "b.txt", "c.png") for fault in faults if name in fault] == [
        "a.txt", "b.txt", "c.png",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.txt.*\(and 2 more: torchdcn train --check names all\)$"):
        open_dataset(yolo, "train")


def test_a_converted_box_beyond_its_picture_is_named_with_the_picture(yolo: Path) -> None:
    text(yolo / "train" / "labels" / "b.txt", "0 0.9 0.5 0.5 0.5\n")
    [fault] = check_folder(yolo).faults
    assert f"on {yolo}/train/images/b.png: its bbox" in fault
    assert "reaches outside of its image of 40 x 20" in fault


def test_pictures_and_labels_that_are_listed_in_vain_are_named_at_once(voc: Path) -> None:
    open_dataset(voc, "train")
    (voc / "JPEGImages" / "b.png").unlink()
    (voc / "Annotations" / "c.xml").unlink()
    text(voc / "Annotations" / "a.xml", "<annotation>")
    faults = check_folder(voc).faults
    assert len(faults) == 3
    assert faults[0] == f"{voc}/ImageSets/Main/train.txt: names b, of which there is no picture in {voc}/JPEGImages"
    assert faults[1] == f"{voc}/ImageSets/Main/val.txt: names c, of which there is no c.xml in {voc}/Annotations"
    assert "a.xml" in faults[2]
    with pytest.raises(ValueError, match=r"train\.txt: names b, .*and 2 more: torchdcn train --check names all"):
        open_dataset(voc, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_not_there_is_said_of_the_folder_that_was_given(yolo: Path, voc: Path, split: str) -> None:
    other = {"train": "val", "val": "train"}[split]
    text(yolo / "data.yaml", f"{other}: {'train' if other == 'train' else 'valid'}/images\nnames: [cup, eel]\n")
    (voc / "ImageSets" / "Main" / f"{split}.txt").unlink()
    for folder, said in (
        (
            yolo,
            f"{yolo}/data.yaml: names no folder with pictures for {split}; write one, as in {split}: {split}/images",
        ),
        (voc, f"{voc}: a Pascal VOC folder without pictures for {split}; expected ImageSets/Main/{split}.txt to name"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            open_dataset(folder, split)
        assert str(caught.value).startswith(said)
        assert any(fault.startswith(said) for fault in check_folder(folder).faults)
        assert len(open_dataset(folder, other))


def test_labels_in_a_folder_of_another_name_are_missed(yolo: Path) -> None:
    (yolo / "train" / "labels").rename(yolo / "train" / "label")
    [fault] = check_folder(yolo).faults
    assert f"none of the 2 images (the first: {yolo}/train/images/a.png) has an object" in fault


def test_masks_that_are_read_together_have_bounds(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text(yolo / "train" / "labels" / "a.txt", "")
    lines = "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n" * 12
    for number in range(20):
        name = f"train/images/{number:02d}.png"
        picture(yolo / name)
        Image.open(yolo / name).resize((200, 200)).save(yolo / name)
        text(yolo / "train" / "labels" / f"{number:02d}.txt", lines)
    one = 12 * 200 * 200
    monkeypatch.setattr(converters, "MASKS", 2 * one)
    tracemalloc.start()
    dataset = open_dataset(yolo, "train")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 * one
    assert [len(dataset.labels(index)) for index in range(len(dataset))] == [12] * 20 + [0, 0]
    assert dataset[19][1]["masks"][:, 60, 60].tolist() == [1] * 12


def test_without_supervision_the_line_says_what_to_install(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "supervision":
            raise ImportError("No module named 'supervision'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install supervision"):
        open_dataset(yolo, "train")
