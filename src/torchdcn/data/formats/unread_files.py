"""What single files of labels look like, and how to convert them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LINE = 4096
"""Bytes of a file's beginning that are looked at."""

DATUM = "datum convert -i {root} -if {format} -f coco -o OUT -- --save-media (pip install datumaro)"
JSON_KINDS = {
    "labelme": (
        "LabelMe's JSON, a file for each picture",
        "labelme2coco {root} --train_split_rate 0.8 (pip install labelme2coco) writes a train.json and a val.json; "
        "put them into this folder",
    ),
    "label studio": ("Label Studio's own JSON", "export it from Label Studio as COCO, with the images"),
    "via": (
        "VGG Image Annotator's (VIA's) JSON",
        "export the annotations from VIA as COCO, and put that file beside the pictures",
    ),
    "supervisely": ("Supervisely's JSON", "export it from Supervisely with its app Export to COCO"),
    "supervisely classes": ("Supervisely's JSON", "export it from Supervisely with its app Export to COCO"),
    "createml": (
        "createML's JSON",
        "export it as COCO from the tool that made it (Roboflow: the format COCO)",
    ),
    "datumaro": ("datumaro's JSON", DATUM.replace("{format}", "datumaro")),
    "darwin": ("V7's Darwin JSON", "darwin convert coco {root} OUT (pip install darwin-py)"),
    "labelbox": ("Labelbox's JSON", "convert it to COCO's JSON"),
    "bdd100k": ("BDD100K's (Scalabel's) JSON", "convert it to COCO's JSON"),
    "cityscapes": ("Cityscapes' polygons in JSON", "convert them to COCO's JSON"),
    "coco captions": ("COCO's captions alone, which have no boxes", "give a folder with instances_train.json too"),
    "coco panoptic": (
        "COCO's panoptic annotations alone, whose masks are in PNG files",
        "give a folder with instances_train.json too, or convert them with panopticapi's "
        "converters/panoptic2detection_coco_format.py",
    ),
    "coco without annotations": (
        "COCO's list of images without annotations",
        "give a folder with annotations/instances_train.json and instances_val.json",
    ),
    "coco results": ("COCO's results of a detector, not annotations", "give the folder of the annotated pictures"),
}
"""What a kind of :func:`json_kind` is, and what to do about it."""


def describe_table(file: Path) -> str:
    """Says what a CSV file's columns look like, and what to do about it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unread_files import describe_table
        >>> path = Path(tempfile.mkdtemp()) / "_annotations.csv"
        >>> _ = path.write_text("filename,width,height,class,xmin,ymin,xmax,ymax")
        >>> describe_table(path).split(";")[0]
        'looks like boxes in a CSV, as Roboflow and TensorFlow write them (_annotations.csv)'
    """
    head = read_head(file).split("\n")[0]
    columns = {name.strip(' "').lower() for name in re.split(r"[,;\t]", head)}
    if {"imageid", "labelname"} <= columns:
        what = "OpenImages' CSV"
    elif "region_shape_attributes" in columns:
        return _name_table("VGG Image Annotator's (VIA's) CSV", file, JSON_KINDS["via"][1])
    elif {"xmin", "ymin", "xmax", "ymax"} <= columns:
        what = "boxes in a CSV, as Roboflow and TensorFlow write them"
    else:
        what = "labels in a CSV"
    return _name_table(what, file, "convert it to COCO's JSON, or export COCO or Pascal VOC from the tool that made it")


def _name_table(what: str, file: Path, do: str) -> str:
    return f"looks like {what} ({file.name}); {do}"


def line_kind(file: Path) -> str:
    """Whose labels a text file's first lines are: ``"yolo"``, ``"kitti"``, ``"dota"``, ``"mot"``, or ``""``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unread_files import line_kind
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("0 0.5 0.5 0.2 0.1")
        >>> line_kind(path)
        'yolo'
    """
    lines = [line for line in read_head(file).splitlines() if line.strip()]
    return next(filter(None, map(_kind_of_line, lines[:3])), "")  # DOTA has two lines of other things


def _kind_of_line(line: str) -> str:
    words = line.replace(",", " ").split()
    numbers = [_number(word) for word in words]
    given = [number for number in numbers if number is not None]
    if "," in line and len(words) >= 7 and len(given) == len(words):
        return "mot"
    if len(words) in (15, 16) and numbers[0] is None and len(given) >= 14:
        return "kitti"
    if len(words) in (9, 10) and len(given) >= 8 and numbers[8] is None:
        return "dota"
    if len(words) >= 5 and len(given) == len(words) and words[0].isdigit() and all(-1 < n < 2 for n in given[1:]):
        return "yolo"
    return ""


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def read_head(file: Path) -> str:
    """The beginning of a text file; nothing where it can't be read.

    Example:
        >>> from pathlib import Path
        >>> from torchdcn.data.formats.unread_files import read_head
        >>> read_head(Path("/nowhere/a.txt"))
        ''
    """
    try:
        with file.open("rb") as opened:
            return opened.read(LINE).decode("utf-8-sig", errors="replace").replace("\0", "")
    except OSError:
        return ""
