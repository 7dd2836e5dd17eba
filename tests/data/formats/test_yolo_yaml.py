"""What data.yaml says: the classes, and where the pictures of each split are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from torchdcn.data import open_dataset
from torchdcn.data.check import check_folder
from torchdcn.data.formats import LabelsError, find_format
from torchdcn.data.formats.yolo import YoloFolder

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Tree

BOX = "0 0.5 0.5 0.25 0.5"


def classes(tree: Tree, names: str) -> list[str]:
    tree.text("data.yaml", f"train: train/images\n{names}\n")
    return YoloFolder(tree.root).classes


def pictures(tree: Tree, split: str = "train") -> list[str]:
    """The pictures of a split that has no fault, by their path in the folder."""
    found = YoloFolder(tree.root).splits[split]
    assert found.faults == []
    return [picture.resolve().relative_to(tree.root).as_posix() for picture, _ in found.pairs]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("names: [cup, eel]", ["cup", "eel"]),
        ("names:\n- cup\n- eel", ["cup", "eel"]),
        ("names: {1: eel, 0: cup}", ["cup", "eel"]),
        ("names:\n  2: c\n  0: a\n  1: b", ["a", "b", "c"]),
        ("names: {'0': cup}", ["cup"]),
        ("names: [no, 1, null, 1.0, ~, on, 2024-01-01]", ["no", "1", "null", "1.0", "~", "on", "2024-01-01"]),
        ("names: [' cup ', \"eel \\t\"]", ["cup", "eel"]),
        ("names: [Katze, 图, 'traffic light']\nnc: 3", ["Katze", "图", "traffic light"]),
    ],
)
def test_names_are_text_in_the_order_of_their_numbers(yolo: Tree, names: str, found: list[str]) -> None:
    assert classes(yolo, names) == found


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_file(yolo: Tree, encoding: str) -> None:
    yolo.text("data.yaml", "names: [cup, 图]\r\ntrain: train/images\r\n".encode(encoding))
    assert YoloFolder(yolo.root).classes == ["cup", "图"]
    assert pictures(yolo) == ["train/images/a.png", "train/images/b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: images\nnames: [cup, eel]\n", "there is no folder images"),
        ("train: {\n", "not a YAML file"),
        ("train: a\ntrain: b\nnames: [cup]\n", "not a YAML file (line 2: the key 'train' is there twice)"),
        ("names: {0: cup, 0: eel}\n", "the key '0' is there twice"),
        ("- a\n", "expected names, train and val, got ['a']"),
        ("", "expected names, train and val, got None"),
        ("train: train/images\n", "expected names, a list of the classes, got None"),
        ("train: train/images\nnames: cup\n", "expected names, a list of the classes, got 'cup'"),
        ("train: train/images\nnames: []\n", "expected names, a list of the classes, got []"),
        ("train: train/images\nnames: {0: cup, 2: eel}\n", "names has the keys 0, 2: 1 is missing, of 2 classes"),
        ("train: train/images\nnames: {1: cup, 2: eel}\n", "names has the keys 1, 2: 0 is missing"),
        ("train: train/images\nnames: {cup: 0}\n", "names: expected whole numbers as keys, got 'cup'"),
        ("train: train/images\nnames: {-1: cup}\n", "names: expected whole numbers as keys, got '-1'"),
        ("train: train/images\nnames: [cup, ' ']\n", "names: expected the name of the class 1, got ''"),
        ("train: train/images\nnames: [cup, [eel]]\n", "names: expected the name of the class 1, got ['eel']"),
        ("train: train/images\nnames: [cup, eel, 'cup ']\n", "names: 'cup' is there twice, as the classes 0 and 2"),
        ("train: train/images\nnc: 3\nnames: [cup, eel]\n", "nc is '3', but names has 2 classes"),
        ("train: train/images\nnc: two\nnames: [cup, eel]\n", "nc is 'two', but names has 2 classes"),
        ("train: {a: b}\nnames: [cup, eel]\n", "train: expected a folder of pictures or a list of them"),
        ("train: train/images/a.png\nnames: [cup, eel]\n", "train: expected a folder or a list of pictures"),
        ("train: train/images\nnames: [cup, eel]\nkpt_shape: 17\n", "kpt_shape: expected two whole numbers above 0"),
        (b"train: train/images\nnames: [caf\xe9]\n", "not a text file"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\n", "names: expected the name of the class 0, got ['x', 'x']"),
    ],
)
def test_a_fault_is_said_in_one_line(yolo: Tree, content: str | bytes, message: str) -> None:
    yolo.text("data.yaml", content)
    with pytest.raises(LabelsError) as caught:
        open_dataset(yolo.root, "train")
    assert str(caught.value).startswith(f"{yolo.root}/data.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert any(message in fault for fault in check_folder(yolo.root).faults)


def test_faults_of_the_yaml_file_and_of_labels_are_named_together(yolo: Tree) -> None:
    yolo.text("data.yaml", "train: train/images\nnc: 3\nnames: [cup, eel]\n")
    yolo.text("train/labels/a.txt", "5 0.5 0.5 0.1 0.1\n")
    with pytest.raises(LabelsError) as caught:
        open_dataset(yolo.root, "train")
    assert [fault.split(":")[0].rsplit("/")[-1] for fault in caught.value.faults] == ["data.yaml", "a.txt"]


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "dataset.yaml", "coco128.yaml", "My Set.YAML"])
def test_the_yaml_file_may_have_any_name_if_it_is_the_only_one(yolo: Tree, name: str) -> None:
    yolo.move("data.yaml", name)
    yolo.text("hyp.yaml", "lr0: 0.01\n")
    yolo.text("broken.yaml", "{")
    yolo.text("._data.yaml", "names: [x]\ntrain: y\n")
    assert find_format(yolo.root) is YoloFolder
    assert len(open_dataset(yolo.root, "train")) == 2


def test_of_two_yaml_files_none_is_guessed(yolo: Tree) -> None:
    yolo.move("data.yaml", "a.yaml")
    yolo.text("b.yaml", (yolo.root / "a.yaml").read_text())
    with pytest.raises(LabelsError, match=r"a\.yaml, b\.yaml all name classes and splits; rename the one to use"):
        open_dataset(yolo.root, "train")
    yolo.text("data.yaml", (yolo.root / "a.yaml").read_text())
    assert len(open_dataset(yolo.root, "train")) == 2


@pytest.mark.parametrize(
    "places",
    [
        "train: train/images",
        "train: ../train/images",
        "train: ./train/images/",
        "train: ..\\train\\images",
        "path: .\ntrain: train/images",
        "path: train\ntrain: images",
        "path: /content/datasets/mine\ntrain: train/images",
        "path: ../datasets/mine\ntrain: train/images",
        "path: ROOT\ntrain: train/images",
        "train: ROOT/train/images",
        "train: [train/images]",
        "train:\n  - train/images\n  - train/images/",
        "train: train",
        "train: [train, ../train/images]",
        "train: /content/mine/train/images",
        "train: C:\\Users\\me\\train\\images",
        "train: datasets/yolo/train/images",
        "Train: train/images",
        "train: train.txt",
        "train: [train.txt]",
        "path: lists\ntrain: relative.txt",
    ],
)
def test_a_split_is_found_where_the_yaml_file_says(yolo: Tree, places: str) -> None:
    """The folder is called yolo."""
    yolo.text("data.yaml", f"{places.replace('ROOT', str(yolo.root))}\nnames: [cup, eel]\n")
    yolo.text("train.txt", "./train/images/a.png\ntrain/images/b.png\n")
    yolo.text("lists/relative.txt", "../train/images/a.png\n../train/images/b.png\n")
    assert pictures(yolo) == ["train/images/a.png", "train/images/b.png"]
    assert open_dataset(yolo.root, "train").labels(0) == [1, 0]


def test_the_archives_own_folder_goes_before_one_beside_it(yolo: Tree) -> None:
    inner = yolo.root / "train" / "images" / "x.png"
    outer = yolo.root.parent / "train" / "images" / "y.png"
    for path in (inner, outer):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((yolo.root / "train/images/a.png").read_bytes())
    assert "train/images/x.png" in pictures(yolo)
    assert "y.png" not in str(pictures(yolo))


@pytest.mark.parametrize(
    "lines",
    [
        "train/images/a.png\n./train/images/b.png",
        "\ufefftrain/images/a.png\r\n\r\ntrain/images/b.png\r\n",
        "data/train/images/a.png\ndata/train/images/b.png",
        "ROOT/train/images/a.png\nROOT/train/images/b.png",
        "/content/set/train/images/a.png\n/content/set/train/images/b.png",
        "train\\images\\a.png\ntrain\\images\\b.png",
        "../yolo/train/images/a.png\ntrain/images/b.png",
    ],
)
def test_a_list_of_pictures_is_read(yolo: Tree, lines: str) -> None:
    yolo.text("train.txt", lines.replace("ROOT", str(yolo.root)))
    yolo.text("data.yaml", "path: ./ # root\ntrain: train.txt\nnames: {0: cup, 1: eel}\n")
    assert pictures(yolo) == ["train/images/a.png", "train/images/b.png"]
    assert [open_dataset(yolo.root, "train").labels(index) for index in range(2)] == [[1, 0], []]


def test_a_list_may_name_a_part_of_a_folder(yolo: Tree) -> None:
    yolo.text("train.txt", "train/images/b.png\ntrain/images/b.png\n")
    yolo.text("train/labels/x.txt", BOX)
    yolo.text("data.yaml", "train: train.txt\nnames: [cup, eel]\n")
    assert pictures(yolo) == ["train/images/b.png"]
    notes = open_dataset(yolo.root, "train").notes
    assert any(f"1 picture ({yolo.root}/train/images/b.png) named more than once, taken once" in note for note in notes)
    assert any(f"1 file ({yolo.root}/train/labels/x.txt) of labels left out" in note for note in notes)


def test_what_a_list_names_in_vain_is_a_fault(yolo: Tree) -> None:
    yolo.text("data.yaml", "train: train.txt\nnames: [cup, eel]\n")
    yolo.text("train.txt", "train/images/a.png\ntrain/images/none.png\ntrain/images/B.png\ndata.yaml\n")
    with pytest.raises(LabelsError) as caught:
        open_dataset(yolo.root, "train")
    listing = yolo.root / "train.txt"
    assert caught.value.faults == [
        f"{listing}: names data.yaml, which is no picture of a kind that can be read",
        f"{listing}: names train/images/none.png, of which there is no picture",
        f"{listing}: names train/images/B.png, of which there is no picture; did you mean "
        f"{yolo.root}/train/images/b.png?",
    ]
    yolo.text("train.txt", "".join(f"images/train/{number}.png\n" for number in range(500)))
    with pytest.raises(LabelsError, match=r"train\.txt: nothing that it names is there: 500 pictures \(the first: im"):
        open_dataset(yolo.root, "train")


def test_every_split_that_is_named_is_converted(yolo: Tree) -> None:
    for name in ("night", "other"):
        yolo.picture(f"{name}/images/{name}.png")
        yolo.text(f"{name}/labels/{name}.txt", BOX)
    splits = "train: train/images\nval: valid/images\nvalid: other/images\ntest: night/images\nnight: night/images\n"
    rest = "nc: 2\nnames: [cup, eel]\nauthor: me\nroboflow: {url: x}\nversion: 1\nlicense: train/labels\nempty:\n"
    yolo.text("data.yaml", splits + rest)
    assert list(YoloFolder(yolo.root).splits) == ["train", "val", "test", "valid", "night"]
    for split, count in {"train": 2, "val": 1, "valid": 1, "test": 1, "night": 1}.items():
        assert len(open_dataset(yolo.root, split)) == count
    assert open_dataset(yolo.root, "valid").image_path(0).name == "other.png"
    with pytest.raises(FileNotFoundError, match=r"splits there: train, val, test, valid, night$"):
        open_dataset(yolo.root, "day")


def test_a_folder_that_is_missing_is_a_fault_of_its_split_alone(yolo: Tree) -> None:
    """Roboflow's data.yaml names a test that may have no pictures."""
    yolo.text("data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cup, eel]\n")
    (yolo.root / "images").mkdir()
    missing = f"{yolo.root}/data.yaml: test: there is no folder ../test/images, nor a list of pictures"
    assert open_dataset(yolo.root, "train").notes == [f"the split test is left out: {missing}"]
    assert open_dataset(yolo.root, "val").notes == []
    with pytest.raises(LabelsError) as caught:
        open_dataset(yolo.root, "test")
    assert str(caught.value) == missing
    report = check_folder(yolo.root)
    assert report.faults == []
    assert f"train: the split test is left out: {missing}" in report.warnings


def test_faults_of_a_split_that_check_does_not_read_do_not_send_to_it(yolo: Tree) -> None:
    yolo.text("data.yaml", "train: train/images\nnight: train/images\nnames: [cup, eel]\n")
    yolo.text("train/labels/a.txt", "1\n2\n")
    for split, end in (("train", r" more: torchdcn train --check names all\)$"), ("night", r"\(and 1 more\)$")):
        with pytest.raises(LabelsError, match=end):
            open_dataset(yolo.root, split)


@pytest.mark.parametrize("value", ["", "~", "null", "[]", "''", "None"])
def test_an_empty_split_is_not_there(yolo: Tree, value: str) -> None:
    yolo.text("data.yaml", f"train: train/images\nval: valid/images\ntest: {value}\nnames: [cup, eel]\n")
    assert list(YoloFolder(yolo.root).splits) == ["train", "val"]


def test_a_folder_without_pictures_says_what_is_in_it(yolo: Tree) -> None:
    yolo.text("raw/a.dng", "?")
    yolo.text("data.yaml", "train: raw\nnames: [cup, eel]\n")
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(yolo.root, "train")
    assert "names no folder with pictures for train" in str(caught.value)
    assert f"1 file ({yolo.root}/raw/a.dng) left out, which are not read as pictures" in str(caught.value)


def test_a_path_of_another_computer_is_told(yolo: Tree) -> None:
    yolo.text("data.yaml", "train: /content/mine/train/images\nnames: [cup, eel]\n")
    [note] = open_dataset(yolo.root, "train").notes
    assert f"there is no /content/mine/train/images; {yolo.root}/train/images is taken for it" in note
    yolo.text("data.yaml", "train: /content/mine/test/images\nnames: [cup, eel]\n")
    (yolo.root / "images").mkdir()
    with pytest.raises(LabelsError, match="there is no folder /content/mine/test/images"):
        open_dataset(yolo.root, "train")


def test_a_relative_folder_may_be_given(yolo: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(yolo.root)
    yolo.text("data.yaml", "train: train\nval: .\nnames: [cup, eel]\n")
    assert len(open_dataset(".", "train")) == 2
    assert len(open_dataset(".", "val")) == 3
    monkeypatch.chdir(tmp_path)
    assert open_dataset("yolo", "train").labels(0) == [1, 0]
