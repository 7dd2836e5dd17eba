"""The ``.xml`` files of Pascal VOC."""

from __future__ import annotations

import math
import re
from itertools import count
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from ..segmentation import shorten
from ..text import MARKS
from .labels import LabelsError, box_object, polygon_area, polygon_object

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element

WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949", "ks_c_5601-1987": "cp949"}
"""What Windows writes under the name of a smaller encoding."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_xml(path: Path) -> Element:
    """Reads an annotation's XML file, in the encoding that it declares or that its byte order mark says.

    Raises:
        LabelsError: It is no XML, or no ``<annotation>``; one line that begins with the path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.voc_xml import read_xml
        >>> path = Path(tempfile.mkdtemp()) / "a.xml"
        >>> xml = '<?xml version="1.0" encoding="gb2312"?><annotation><filename>图.jpg</filename></annotation>'
        >>> _ = path.write_bytes(xml.encode("gb2312"))
        >>> read_xml(path).findtext("filename")
        '图.jpg'
    """
    try:
        text = _decode(path.read_bytes()).lstrip()
        if "<!ENTITY" in text:  # a few of them can stand for gigabytes
            raise LabelsError([f"{path}: it declares entities, which are not read"])
        root = ET.fromstring(text)  # noqa: S314  # without entities there is nothing to expand
    except OSError as error:
        raise LabelsError([f"{path}: can't be read: {error.strerror}"]) from None
    except UnicodeError as error:
        raise LabelsError([f"{path}: not an XML file: {error}; save it as UTF-8"]) from None
    except (ET.ParseError, LookupError) as error:
        raise LabelsError([f"{path}: not an XML file: {error}"]) from None
    if root.tag.lower() != "annotation":
        raise LabelsError([f"{path}: expected <annotation>, got <{root.tag}>"])
    return root


def _decode(content: bytes) -> str:
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "")
    if not encoding:
        # UTF-16 without a mark has a null in its first sign. A file that declares UTF-16 and has none is in UTF-8.
        encoding = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}.get(content[:2], "utf-8")
        declared = re.match(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""", content)
        if declared and not declared[1].lower().startswith((b"utf-16", b"ucs-2")):
            encoding = declared[1].decode().lower()
    return content.decode(WIDER.get(encoding, encoding))


def read_size(root: Element) -> tuple[int, int] | None:
    """Height and width that the file says, or None where it says nothing: some tools write 0 x 0.

    Raises:
        ValueError: They are no numbers.
    """
    values = [(root.findtext(f"size/{side}") or "0").strip() or "0" for side in ("height", "width")]
    height, width = (_number(value, side) for value, side in zip(values, ("height", "width"), strict=True))
    return (int(height), int(width)) if height and width else None


def read_object(element: Element) -> dict[str, Any]:
    """An ``<object>`` as COCO's annotation, with its class.

    Pixels count from 1 in VOC and from 0 in COCO, and VOC's corners are those of the first and the last pixel.

    Raises:
        ValueError: It has no name or no box, or a box that can't be; without its place.

    Example:
        >>> from xml.etree import ElementTree
        >>> from torchdcn.data.formats.voc_xml import read_object
        >>> box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>4.0</ymax></bndbox>"
        >>> read_object(ElementTree.fromstring(f"<object><name> eel </name>{box}</object>"))
        {'class': 'eel', 'bbox': [0.0, 0.0, 8.0, 4.0], 'area': 32.0, 'iscrowd': 0}
    """
    name = class_name(element)
    if not name:
        raise ValueError("it has no <name>")
    polygons = [points for each in element.findall("polygon") if (points := _read_polygon(each))]
    boxes = element.findall("bndbox")
    if not boxes and polygons:
        return polygon_object(name, polygons)
    if len(boxes) != 1:
        rotated = " (rotated boxes, <robndbox>, are not read)" if element.find("robndbox") is not None else ""
        raise ValueError(f"expected one <bndbox>, got {len(boxes)}{rotated}")
    x1, y1, x2, y2 = (_number(boxes[0].findtext(corner), corner) for corner in CORNERS)
    if x2 < x1 or y2 < y1:
        raise ValueError(f"its <bndbox> ends before it begins: {x1:g}, {y1:g} to {x2:g}, {y2:g}")
    found = box_object(name, x1 - 1, y1 - 1, x2, y2)
    if polygons:
        found |= {"area": sum(map(polygon_area, polygons)), "segmentation": polygons}
    return found


def class_name(element: Element) -> str:
    """The name of an object's class, without the white space around it."""
    return (element.findtext("name") or "").strip()


def is_deleted(element: Element) -> bool:
    """Whether an object was deleted by its labeller: LabelMe keeps those."""
    return (element.findtext("deleted") or "").strip() == "1"


def _read_polygon(element: Element) -> list[float]:
    """The points of a polygon, from 0: ``<x1>``, ``<y1>``, ``<x2>``, ... or ``<pt><x/><y/></pt>``."""
    points = [(each.findtext("x"), each.findtext("y")) for each in element.findall("pt")]
    for number in count(1):
        x, y = element.findtext(f"x{number}"), element.findtext(f"y{number}")
        if x is None and y is None:
            break
        points.append((x, y))
    return [_number(text, "a point of its <polygon>") - 1 for point in points for text in point]


def _number(text: str | None, what: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what}: expected a number, got {'none' if text is None else shorten(text)}")
    return value
