from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"
XML = f"<annotation><filename>{{}}</filename>{SIZE}{{}}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


class Tree:
    """A folder of pictures, each of 40 x 20 pixels and of its own shade, and of labels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shade = 90

    def picture(self, *names: str) -> None:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.shade += 1
            Image.fromarray(np.full((20, 40, 3), self.shade, np.uint8)).save(path)

    def text(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def xml(self, name: str, *boxes: tuple[object, ...], filename: str | None = None) -> Path:
        """Boxes are (class, xmin, ymin, xmax, ymax)."""
        objects = "".join(OBJECT.format(*box) for box in boxes)
        return self.text(name, XML.format(filename or Path(name).stem + ".png", objects))

    def move(self, source: str, target: str) -> None:
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        (self.root / source).rename(self.root / target)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "data")


@pytest.fixture
def yolo(tmp_path: Path) -> Tree:
    """As exported by labelling tools: two pictures to train on, of which one has no labels, and one of val."""
    tree = Tree(tmp_path / "yolo")
    tree.text("data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cup, eel]\n")
    tree.picture("train/images/a.png", "train/images/b.png", "valid/images/c.png")
    tree.text("train/labels/a.txt", "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.2 0.4\n")
    tree.text("valid/labels/c.txt", "0 0.5 0.5 0.25 0.5\n")
    return tree


@pytest.fixture
def voc(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "voc")
    objects = {"a": ("eel", 11, 5, 20, 15), "b": ("cup", 1, 1, 40, 20), "c": ("eel", 1, 1, 8, 8)}
    for name, box in objects.items():
        tree.picture(f"JPEGImages/{name}.png")
        tree.xml(f"Annotations/{name}.xml", box)
    tree.text("ImageSets/Main/train.txt", "a\nb\n")
    tree.text("ImageSets/Main/val.txt", "c\n")
    return tree
