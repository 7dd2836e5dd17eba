from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Folder:
    """A small data set in COCO's format that a test changes before it is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "a.png", "width": 12, "height": 8}],
            "categories": [{"id": 44, "name": "cup"}, {"id": 3, "name": "eel"}],
            "annotations": [],
        }

    def add(self, segmentation: Any = None, bbox: Any = (2, 1, 4, 3), **more: Any) -> dict[str, Any]:
        entry = {"id": len(self.content["annotations"]) + 1, "image_id": 7, "category_id": 44, "bbox": list(bbox)}
        if segmentation is not None:
            entry["segmentation"] = segmentation
        entry |= more
        self.content["annotations"].append(entry)
        return entry

    def write(self, split: str = "train", year: str = "") -> Path:
        (self.root / "annotations").mkdir(parents=True, exist_ok=True)
        (self.root / f"{split}{year}").mkdir(exist_ok=True)
        text = json.dumps(self.content)
        (self.root / "annotations" / f"instances_{split}{year}.json").write_text(text)
        pixels = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
        for image in self.content["images"]:
            Image.fromarray(pixels).save(self.root / f"{split}{year}" / str(image["file_name"]))
        return self.root


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    return SHARED
