"""What the .xml files of Pascal VOC say."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from torchdcn.data import open_dataset
from torchdcn.data.check import check_folder
from torchdcn.data.formats import LabelsError
from torchdcn.data.formats.voc_xml import read_object, read_xml

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Tree

BOX = "<bndbox><xmin>11</xmin><ymin>5</ymin><xmax>20</xmax><ymax>15</ymax></bndbox>"
DOCUMENT = "<annotation><filename>图é.jpg</filename></annotation>"
POLYGON = "<polygon><x1>11</x1><y1>5</y1><x2>21</x2><y2>5</y2><x3>21</x3><y3>15</y3></polygon>"
POINTS = "<polygon><pt><x>11</x><y>5</y></pt><pt><x>21</x><y>5</y></pt><pt><x>21</x><y>15</y></pt></polygon>"


def parse(content: str) -> dict:
    return read_object(ET.fromstring(f"<object>{content}</object>"))  # noqa: S314  # our own text


@pytest.mark.parametrize(
    "content",
    [
        DOCUMENT.encode(),
        DOCUMENT.encode("utf-8-sig"),
        DOCUMENT.encode("utf-16"),
        DOCUMENT.encode("utf-16-le"),
        b"\n  " + DOCUMENT.encode(),
        f'<?xml version="1.0" encoding="UTF-8"?>\n{DOCUMENT}'.encode(),
        f'<?xml version="1.0" encoding="utf-16"?>{DOCUMENT}'.encode("utf-16"),
        f'<?xml version="1.0" encoding="utf-16"?>{DOCUMENT}'.encode(),
        f"<?xml version='1.0' encoding='GB2312'?>{DOCUMENT}".encode("gb18030"),
        f'<?xml version="1.0" encoding="gbk" standalone="no" ?>{DOCUMENT}'.encode("gb18030"),
        f'<!DOCTYPE annotation SYSTEM "voc.dtd">{DOCUMENT}'.encode(),
    ],
)
def test_every_encoding_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    assert read_xml(path).findtext("filename") == "图é.jpg"


@pytest.mark.parametrize(
    ("encoding", "name"), [("Shift_JIS", "写真①"), ("euc-kr", "사진"), ("big5", "圖"), ("windows-1251", "кот")]
)
def test_encodings_of_other_countries_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / "a.xml"
    xml = f'<?xml version="1.0" encoding="{encoding}"?><annotation><filename>{name}</filename></annotation>'
    path.write_bytes(xml.encode({"Shift_JIS": "cp932"}.get(encoding, encoding)))
    assert read_xml(path).findtext("filename") == name


BOMB = "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an XML file: no element found"),
        (b"<annotation>", "not an XML file: no element found"),
        (b"<annotation><object></annotation>", "not an XML file: mismatched tag"),
        (b"<annotation>caf\xe9</annotation>", "not an XML file: 'utf-8' codec can't decode"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "not an XML file: unknown encoding: klingon"),
        (b'<?xml version="1.0" encoding="hex"?><annotation/>', "not an XML file: 'hex' is not a text encoding"),
        (b"<annotations/>", "expected <annotation>, got <annotations>"),
        (f'<!DOCTYPE a [<!ENTITY x0 "x">{BOMB}]><annotation>&x29;</annotation>'.encode(), "it declares entities"),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "it declares entities"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(LabelsError) as caught:
        read_xml(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_corners_may_have_decimals() -> None:
    decimals = BOX.replace("11", "11.0").replace("20", " 20.5 ")
    assert parse(f"<name>eel</name>{decimals}")["bbox"] == [10, 4, 10.5, 11]


def test_names_have_no_space_around_them() -> None:
    assert parse(f"<name>\n  traffic light </name>{BOX}")["class"] == "traffic light"


def test_the_boxes_of_parts_are_not_those_of_their_object() -> None:
    part = f"<part><name>head</name>{BOX.replace('20', '12')}</part>"
    found = parse(f"<name>person</name>{part}{BOX}{part}")
    assert (found["class"], found["bbox"]) == ("person", [10, 4, 10, 11])
    with pytest.raises(ValueError, match="expected one <bndbox>, got 0"):
        parse(f"<name>person</name>{part}")


@pytest.mark.parametrize("polygon", [POLYGON, POINTS])
def test_polygons_become_segmentations(polygon: str) -> None:
    points = [10.0, 4.0, 20.0, 4.0, 20.0, 14.0]
    found = parse(f"<name>eel</name>{BOX}{polygon}")
    assert (found["bbox"], found["area"], found["segmentation"]) == ([10, 4, 10, 11], 50, [points])
    alone = parse(f"<name>eel</name>{polygon}{polygon}")
    assert (alone["bbox"], alone["area"], alone["segmentation"]) == ([10, 4, 10, 10], 100, [points, points])


def test_a_polygon_becomes_a_mask(voc: Tree) -> None:
    voc.text("Annotations/a.xml", f"<annotation><object><name>eel</name>{BOX}{POLYGON}</object></annotation>")
    voc.text("ImageSets/Main/train.txt", "a\n")
    target = open_dataset(voc.root, "train")[0][1]
    assert target["boxes"].tolist() == [[10, 4, 20, 15]]
    assert target["masks"].shape == (1, 20, 40)
    assert target["masks"][0, 5, 18]
    assert not target["masks"][0, 13, 12]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (BOX, "object 2 (without a name): it has no <name>"),
        (f"<name> </name>{BOX}", "object 2 (without a name): it has no <name>"),
        ("<name>eel</name>", "object 2 (eel): expected one <bndbox>, got 0"),
        (f"<name>eel</name>{BOX}{BOX}", "object 2 (eel): expected one <bndbox>, got 2"),
        ("<name>eel</name><robndbox><cx>3</cx></robndbox>", "got 0 (rotated boxes, <robndbox>, are not read)"),
        (f"<name>eel</name>{BOX.replace('<xmax>20</xmax>', '')}", "object 2 (eel): xmax: expected a number, got none"),
        (f"<name>eel</name>{BOX.replace('20', '')}", "object 2 (eel): xmax: expected a number, got ''"),
        (f"<name>eel</name>{BOX.replace('20', 'x')}", "object 2 (eel): xmax: expected a number, got 'x'"),
        (f"<name>eel</name>{BOX.replace('20', '12,5')}", "object 2 (eel): xmax: expected a number, got '12,5'"),
        (f"<name>eel</name>{BOX.replace('20', 'nan')}", "object 2 (eel): xmax: expected a number, got 'nan'"),
        (f"<name>eel</name>{BOX.replace('20', '2')}", "its <bndbox> ends before it begins: 11, 5 to 2, 15"),
        (f"<name>eel</name>{BOX}{POLYGON.replace('<y3>15</y3>', '')}", "a point of its <polygon>: expected a number"),
    ],
)
def test_an_object_that_cannot_be_is_named(voc: Tree, content: str, fault: str) -> None:
    good = f"<object><name>cup</name>{BOX}</object>"
    voc.text("Annotations/a.xml", f"<annotation>{good}<object>{content}</object></annotation>")
    with pytest.raises(LabelsError) as caught:
        open_dataset(voc.root, "train")
    assert str(caught.value).startswith(f"{voc.root}/Annotations/a.xml: object 2 ")
    assert fault in str(caught.value)
    assert str(caught.value) in check_folder(voc.root).faults


def test_all_faults_of_a_file_are_named(voc: Tree) -> None:
    bad = "<object><name>eel</name></object>"
    size = "<size><width>30</width><height>20</height></size>"
    voc.text("Annotations/a.xml", f"<annotation>{size}{bad}{bad}</annotation>")
    with pytest.raises(LabelsError) as caught:
        open_dataset(voc.root, "train")
    assert [fault.split(": ")[1] for fault in caught.value.faults] == [
        "the image has 40 x 20 pixels, its .xml says 30 x 20", "object 1 (eel)", "object 2 (eel)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "size",
    [
        "<size><width>40</width><height>20</height><depth>3</depth></size>",
        "<size><width>40.0</width><height> 20 </height></size>",
        "<size><width>0</width><height>0</height><depth>0</depth></size>",
        "<size><width></width><height/></size>",
        "<size/>",
        "",
    ],
)
def test_a_size_that_says_nothing_else_passes(voc: Tree, size: str) -> None:
    voc.text("Annotations/a.xml", f"<annotation>{size}<object><name>eel</name>{BOX}</object></annotation>")
    assert open_dataset(voc.root, "train").labels(0) == [1]


@pytest.mark.parametrize(("width", "height"), [(20, 40), (41, 20), (80, 40)])
def test_a_size_that_contradicts_the_picture_is_a_fault(voc: Tree, width: int, height: int) -> None:
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    voc.text("Annotations/a.xml", f"<annotation>{size}<object><name>eel</name>{BOX}</object></annotation>")
    said = f"{voc.root}/JPEGImages/a.png: the image has 40 x 20 pixels, its .xml says {width} x {height}"
    assert said in check_folder(voc.root).faults
    with pytest.raises(LabelsError, match=f"its .xml says {width} x {height}"):
        open_dataset(voc.root, "train")


def test_the_size_is_that_of_the_picture_as_it_is_shown(voc: Tree) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.zeros((40, 20, 3), np.uint8)).save(voc.root / "JPEGImages/a.png", exif=exif)
    assert open_dataset(voc.root, "train")[0][0].shape == (3, 20, 40)


def test_deleted_objects_are_left_out(voc: Tree) -> None:
    deleted = f"<object><name>eel</name><deleted>1</deleted>{POINTS}</object>"
    kept = f"<object><name>cup</name><deleted>0</deleted>{POINTS}</object>"
    voc.text("Annotations/a.xml", f"<annotation>{deleted}{kept}</annotation>")
    assert open_dataset(voc.root, "train", masks=False).labels(0) == [0]
