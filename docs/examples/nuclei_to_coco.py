"""The Data Science Bowl's nuclei as a folder in COCO's format: ``python nuclei_to_coco.py stage1_train OUT``.

``stage1_train`` holds a folder for each picture, with ``images/ID.png`` and, for each nucleus, a mask in ``masks/``.
Every fifth picture, in the order of their IDs, is held out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--largest", type=int, default=360, help="Pictures with a longer side are left out.")
    options = parser.parse_args()
    pictures = sorted(options.source.glob("*/images/*.png"))
    if not pictures:
        parser.error(f"SOURCE: expected folders ID/images and ID/masks in {options.source}, found none")
    kept = [path for path in pictures if max(Image.open(path).size) <= options.largest]
    (options.out / "annotations").mkdir(parents=True)
    for split, paths in (("train", [p for i, p in enumerate(kept) if i % 5]), ("val", kept[::5])):
        content = write_split(paths, options.out / split)
        (options.out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        print(f"{split}: {len(paths)} pictures, {len(content['annotations'])} nuclei")


def write_split(paths: list[Path], folder: Path) -> dict[str, Any]:
    """Copies the pictures as JPEG, and returns what is on them."""
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(paths, 1):
        picture = Image.open(path).convert("RGB")  # an alpha channel that says nothing goes
        picture.save(folder / f"{path.stem}.jpg", quality=95)
        images.append({"id": number, "file_name": f"{path.stem}.jpg", "width": picture.width, "height": picture.height})
        for file in sorted((path.parent.parent / "masks").glob("*.png")):
            annotations += nucleus(file, number, len(annotations) + 1)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}


def nucleus(file: Path, image: int, number: int) -> list[dict[str, Any]]:
    """The annotation of one mask; none, if it is empty."""
    mask = np.asarray(Image.open(file).convert("L")) > 0
    if not mask.any():
        return []
    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    box = [float(value) for value in rle.toBbox(encoded)]
    common = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0}
    return [common | {"bbox": box, "area": int(mask.sum()), "segmentation": segmentation}]


if __name__ == "__main__":
    main()
