"""Folders and files that are not read, each told by what it looks like."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from torchdcn.data import CocoDetection
from torchdcn.data.formats.unread import describe_unread

if TYPE_CHECKING:
    from pathlib import Path

LABELME = {"version": "5.2", "shapes": [{"label": "nut", "points": [[1, 2]]}], "imagePath": "a.jpg", "imageData": None}
LABEL_STUDIO = [{"id": 1, "annotations": [{"result": [{"type": "rectanglelabels"}]}], "data": {"image": "/data/a.jpg"}}]
LABEL_STUDIO_MIN = [{"id": 1, "image": "/data/a.jpg", "label": [{"x": 1, "rectanglelabels": ["nut"]}]}]
VIA = {"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}}
VIA_ANNOTATIONS = {"a.jpg12": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect"}}]}}
SUPERVISELY = {"description": "", "tags": [], "size": {"height": 8, "width": 8}, "objects": [{"classTitle": "nut"}]}
CREATEML = [{"image": "a.jpg", "annotations": [{"label": "nut", "coordinates": {"x": 1, "y": 1}}]}]
DATUMARO = {"info": {}, "categories": {"label": {}}, "items": [{"id": "a", "annotations": [], "media": {}}]}
DARWIN = {"version": "2.0", "item": {"name": "a.jpg"}, "annotations": [{"bounding_box": {"x": 1}}]}
LABELBOX = [{"data_row": {"id": "x"}, "projects": {}}]
COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"bbox": [0, 0, 1, 1]}], "categories": []}
CAPTIONS = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "caption": "a nut"}]}
PANOPTIC = COCO | {"annotations": [{"segments_info": [{"bbox": [0, 0, 1, 1]}], "file_name": "a.png"}]}
IMAGE_INFO = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]
TF_CSV = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,8,8,nut,1,1,2,2\n"
OPENIMAGES_CSV = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\na,x,/m/01,1,0,1,0,1\n"
VIA_CSV = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
CVAT_XML = "<?xml version='1.0'?>\n<annotations><version>1.1</version><meta></meta><image id='0' name='a.jpg'/>"
KITTI = "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
DOTA = "imagesource:GoogleEarth\n"
DOTA_LINE = "1.0 2.0 3.0 2.0 3.0 4.0 1.0 4.0 plane 0\n"
MOT = "1,1,794.2,47.5,71.2,174.8,1,1,0.8\n"
YOLO = "0 0.5 0.5 0.25 0.125\n1 0.1 0.1 0.2 0.2\n"
YOLO_POLYGON = "0 0.1 0.1 0.2 0.1 0.2 0.2\n"

FOLDERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "LabelMe": ({"a.jpg": "", "a.json": LABELME}, ("LabelMe's JSON", "labelme2coco ")),
    "LabelMe apart": ({"images/a.jpg": "", "json/a.json": LABELME}, ("LabelMe's JSON", "labelme2coco ")),
    "LabelMe in splits": ({"train/a.jpg": "", "train/a.json": LABELME, "val/b.json": LABELME}, ("LabelMe's JSON",)),
    "Label Studio": (
        {"project-1.json": LABEL_STUDIO},
        ("Label Studio's own JSON", "export it from Label Studio as COCO"),
    ),
    "Label Studio, short": ({"min.json": LABEL_STUDIO_MIN}, ("Label Studio's own JSON",)),
    "VIA": ({"via_project.json": VIA, "a.jpg": ""}, ("VIA", "COCO")),
    "VIA annotations": ({"train/via_region_data.json": VIA_ANNOTATIONS, "train/a.jpg": ""}, ("VIA", "COCO")),
    "VIA CSV": ({"via.csv": VIA_CSV, "a.jpg": ""}, ("VIA", "CSV", "COCO")),
    "Supervisely": (
        {"meta.json": {"classes": []}, "ds0/ann/a.jpg.json": SUPERVISELY, "ds0/img/a.jpg": ""},
        ("Supervisely",),
    ),
    "Supervisely without meta": (
        {"ann/a.jpg.json": SUPERVISELY, "img/a.jpg": ""},
        ("Supervisely's JSON", "Export to COCO"),
    ),
    "createML": ({"train/_annotations.createml.json": CREATEML, "train/a.jpg": ""}, ("createML", "COCO")),
    "datumaro": (
        {"annotations/default.json": DATUMARO, "images/a.jpg": ""},
        ("datumaro's JSON", "-if datumaro -f coco"),
    ),
    "Darwin": ({"releases/a.json": DARWIN}, ("Darwin", "darwin convert coco")),
    "Labelbox": ({"export.json": LABELBOX}, ("Labelbox",)),
    "Roboflow's CSV": ({"train/_annotations.csv": TF_CSV, "train/a.jpg": ""}, ("CSV", "Roboflow", "COCO")),
    "OpenImages": ({"labels/detections.csv": OPENIMAGES_CSV, "data/a.jpg": ""}, ("OpenImages' CSV", "COCO")),
    "Kaggle's CSV": ({"train.csv": "image_id,bbox\na,[1 2 3 4]\n", "train/a.jpg": ""}, ("labels in a CSV",)),
    "TFRecord": ({"train/nuts.tfrecord": "x", "train/nuts_label_map.pbtxt": ""}, ("TFRecord", "-if tf_detection_api")),
    "TFRecord, shards": ({"train.record-00000-of-00010": "x"}, ("TFRecord",)),
    "Hugging Face": ({"data/train-00000.parquet": "x"}, ("Hugging Face",)),
    "ImageFolder": ({"train/metadata.jsonl": "{}", "train/a.jpg": ""}, ("Hugging Face's ImageFolder",)),
    "CVAT's XML": ({"annotations.xml": CVAT_XML, "images/a.jpg": ""}, ("CVAT's XML", "COCO 1.0")),
    "YOLO 1.1": (
        {"obj.data": "classes = 1", "obj.names": "nut", "train.txt": "", "obj_train_data/a.txt": YOLO},
        ("YOLO 1.1", "obj.data", "-if yolo -f coco"),
    ),
    "Darknet of Roboflow": ({"train/_darknet.labels": "nut", "train/a.txt": YOLO, "train/a.jpg": ""}, ("Darknet",)),
    "KITTI": ({"label_2/000000.txt": KITTI, "image_2/000000.png": ""}, ("KITTI", "-if kitti")),
    "KITTI's training": ({"training/label_2/0.txt": KITTI, "training/image_2/0.png": ""}, ("KITTI",)),
    "MOT": ({"MOT17-02/gt/gt.txt": MOT, "MOT17-02/img1/000001.jpg": ""}, ("MOT", "-if mot_seq")),
    "DOTA": ({"labelTxt/a.txt": DOTA_LINE, "images/a.png": ""}, ("DOTA", "oriented")),
    "DOTA with its head": (
        {"labelTxt/a.txt": DOTA + "gsd:0.1\n" + DOTA_LINE, "images/a.png": ""},
        ("DOTA", "oriented"),
    ),
    "COCO captions": ({"annotations/captions_train2017.json": CAPTIONS, "train2017/a.jpg": ""}, ("captions alone",)),
    "COCO panoptic": ({"annotations/panoptic_val2017.json": PANOPTIC, "val2017/a.jpg": ""}, ("panoptic",)),
    "COCO keypoints": (
        {"annotations/person_keypoints_train2017.json": COCO},
        ("keypoints alone", "copy person_keypoints_train2017.json to instances_train2017.json"),
    ),
    "COCO image list": ({"annotations/image_info_test2017.json": IMAGE_INFO}, ("list of images without annotations",)),
    "COCO results": ({"detections.json": RESULTS}, ("results of a detector",)),
    "several COCO files": (
        {"a.json": COCO, "b.json": COCO, "c.jpg": ""},
        ("2 annotation files", "a.json, b.json", "name them"),
    ),
    "classes": (
        {"cat/a.jpg": "", "dog/b.jpg": ""},
        ("a folder of pictures for each class (cat, dog)", "without boxes"),
    ),
    "classes in splits": (
        {f"{s}/{c}/a.jpg": "" for s in ("train", "val") for c in ("n01", "n02")},
        ("for each class (n01, n02)",),
    ),
    "pictures": ({"a.jpg": "", "b.png": ""}, ("pictures without labels, such as a.jpg", "torchdcn detect")),
    "pictures in folders": ({"images/train/a.jpg": "", "images/val/a.jpg": ""}, ("pictures without labels",)),
    "masks": ({"images/a.jpg": "", "masks/a.png": ""}, ("masks as pictures (masks)",)),
    "empty": ({}, ("an empty folder",)),
    "empty folders": ({"images/": "", "labels/": ""}, ("only empty folders",)),
    "hidden files alone": ({"._a.jpg": "", ".DS_Store": "", "__MACOSX/a.jpg": ""}, ("an empty folder",)),
    "archives": ({"train2017.zip": "", "annotations_trainval2017.zip": ""}, ("holds archives, such as", "unpack them")),
    "texts": (
        {"README.md": "hello", "notes.txt": "0 hello"},
        ("no data set that is known", "README.md", "docs/data.md"),
    ),
}


def write(root: Path, files: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


@pytest.mark.parametrize(("files", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_told_by_what_it_looks_like(tmp_path: Path, files: dict[str, Any], words: tuple[str, ...]) -> None:
    root = write(tmp_path / "my data", files)
    line = describe_unread(root)
    assert line.startswith(f"{root}: ")
    assert "\n" not in line
    for word in words:
        assert word in line


def test_the_reader_tells_it_instead_of_a_file_that_is_missing(tmp_path: Path) -> None:
    root = write(tmp_path / "data", {"a.jpg": "", "a.json": LABELME})
    with pytest.raises(FileNotFoundError, match="looks like LabelMe's JSON"):
        CocoDetection(root, "train")


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            {
                "classes.txt": "bolt\nnut: big\n",
                "images/train/a.jpg": "",
                "images/val/b.jpg": "",
                "labels/train/a.txt": YOLO,
            },
            "write {root}/data.yaml with the lines 'train: images/train', 'val: images/val', "
            '\'names: ["bolt", "nut: big"]\'',
        ),
        (
            {
                "train/images/a.jpg": "",
                "valid/images/b.jpg": "",
                "train/labels/a.txt": YOLO,
                "valid/labels/b.txt": YOLO,
            },
            "write {root}/data.yaml with the lines 'train: train/images', 'val: valid/images', "
            '\'names: ["class 0", "..."]\'',
        ),
        (
            {"images/train2017/a.jpg": "", "images/val2017/b.jpg": "", "labels/train2017/a.txt": YOLO_POLYGON},
            "with the lines 'train: images/train2017', 'val: images/val2017', ",
        ),
        (
            {"classes.txt": "bolt\nnut", "notes.json": {}, "images/a.jpg": "", "labels/a.txt": YOLO},
            "move about one in five pictures to images/val and their labels to labels/val, the others to images/train "
            "and labels/train, and write {root}/data.yaml with the lines 'train: images/train', 'val: images/val', "
            '\'names: ["bolt", "nut"]\'',
        ),
        ({"a.jpg": "", "a.txt": YOLO, "classes.txt": "bolt"}, "move about one in five pictures to images/val"),
        ({"images/a.jpg": "", "labels/a.txt": "", "labels/b.txt": YOLO}, "move about one in five pictures"),
    ],
)
def test_yolo_without_a_data_yaml_gets_the_one_to_write(tmp_path: Path, files: dict[str, Any], lines: str) -> None:
    root = write(tmp_path / "data", files)
    line = describe_unread(root)
    assert "looks like YOLO's labels without a data.yaml" in line
    assert lines.replace("{root}", str(root)) in line


@pytest.mark.parametrize(
    "files",
    [
        {"annotations/instances_train.json": COCO, "train/a.jpg": ""},
        {"train/_annotations.coco.json": COCO, "train/a.jpg": ""},
        {"result.json": COCO, "images/a.jpg": ""},
        {"data.yaml": "train: images/train\nnames: [nut]\n", "images/train/a.jpg": ""},
    ],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_data_set_in_a_folder_below_is_named(tmp_path: Path, files: dict[str, Any], depth: int) -> None:
    inner = tmp_path / "outer" / ("a" if depth == 1 else "a/b")
    inner.mkdir(parents=True)
    write(inner, files)
    (tmp_path / "outer" / "README.txt").touch()
    line = describe_unread(tmp_path / "outer")
    assert line == f"{tmp_path / 'outer'}: the data set is in a folder below; give that one: {inner}"


def test_several_data_sets_below_are_named(tmp_path: Path) -> None:
    files = {"annotations/instances_train.json": COCO, "train/a.jpg": ""}
    for name in ("nuts", "bolts"):
        write(tmp_path / name, files)
    line = describe_unread(tmp_path)
    assert line.endswith(
        f"2 data sets are in folders below; give one of them: {tmp_path / 'bolts'}, {tmp_path / 'nuts'}"
    )


@pytest.mark.parametrize("part", ["train", "labels/val", "images/train", "images", "labels"])
def test_a_part_of_a_data_set_names_the_whole(tmp_path: Path, part: str) -> None:
    root = write(
        tmp_path / "data",
        {
            "data.yaml": "train: images/train\nnames: [nut]\n",
            "images/train/a.jpg": "",
            "labels/val/a.txt": YOLO,
            "train/a.jpg": "",
        },
    )
    assert describe_unread(root / part) == f"{root / part}: a part of the data set {root}; give that folder"


def test_a_folder_that_is_converted_says_what_opens_it(tmp_path: Path) -> None:
    root = write(tmp_path / "data", {"result.json": COCO, "images/a.jpg": ""})
    with pytest.raises(FileNotFoundError, match=r"converted first: open it with torchdcn\.data\.open_dataset"):
        CocoDetection(root, "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.zip", "", ("an archive", "unpack it and give the folder")),
        ("data.tar.gz", "", ("an archive", "unpack it")),
        ("data.7z", "", ("an archive", "unpack it")),
        ("annotations/instances_train.json", COCO, ("an annotation file", "give the folder with its pictures: {root}")),
        ("train/_annotations.coco.json", COCO, ("an annotation file", "{root}/train")),
        ("a.json", LABELME, ("LabelMe's JSON", "labelme2coco {root} ")),
        ("a.json", "{}", ("a file, expected a folder", "docs/data.md")),
        ("data.yaml", "train: x", ("give the one that it is in: {root}",)),
        ("a.csv", OPENIMAGES_CSV, ("OpenImages' CSV",)),
        ("a.JPG", "", ("a picture, expected a folder", "torchdcn detect")),
        ("a.bin", "", ("a file, expected a folder",)),
    ],
)
def test_a_file_is_told_by_what_it_is(tmp_path: Path, name: str, content: Any, words: tuple[str, ...]) -> None:
    path = write(tmp_path, {name: content}) / name
    line = describe_unread(path)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    for word in words:
        assert word.replace("{root}", str(tmp_path)) in line
    with pytest.raises(FileNotFoundError, match=r".") as caught:
        CocoDetection(path)
    assert str(caught.value) == line


def test_a_command_quotes_a_folder_with_spaces(tmp_path: Path) -> None:
    root = write(tmp_path / "my data", {"a.json": LABELME})
    assert f"labelme2coco '{root}' --train_split_rate" in describe_unread(root)


def test_a_big_folder_is_told_in_seconds(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(200):
        folder = root / f"class{number:03d}"
        folder.mkdir(parents=True)
        for picture in range(50):
            (folder / f"{picture}.jpg").touch()
    start = time.monotonic()
    assert "for each class (class000, class001" in describe_unread(root)
    assert time.monotonic() - start < 60  # 1 s on two cores
