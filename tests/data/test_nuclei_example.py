"""docs/examples/nuclei_to_coco.py makes a data set that the project reads and finds no fault with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from torchdcn.data import open_dataset
from torchdcn.data.check import check_folder

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "nuclei_to_coco.py"


def test_a_folder_of_the_bowls_layout_becomes_one_of_cocos(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, side in enumerate([64, 64, 64, 64, 64, 64, 500]):  # the last one is too large
        folder = tmp_path / "stage1_train" / f"id{number}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        pixels = rng.integers(0, 256, (side, side, 4), dtype=np.uint8)  # its pictures are RGBA
        Image.fromarray(pixels).save(folder / "images" / f"id{number}.png")
        for nucleus in range(3):
            mask = np.zeros((side, side), np.uint8)
            mask[10 * nucleus : 10 * nucleus + 8, 5:20] = 255 * (nucleus < 2)  # the third is empty
            Image.fromarray(mask).save(folder / "masks" / f"{nucleus}.png")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "stage1_train"), str(tmp_path / "nuclei")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "train: 4 pictures, 8 nuclei\nval: 2 pictures, 4 nuclei\n"
    assert check_folder(tmp_path / "nuclei").faults == []
    dataset = open_dataset(tmp_path / "nuclei", "val")
    _, target = dataset[1]
    assert target["boxes"].tolist() == [[5, 0, 20, 8], [5, 10, 20, 18]]
    assert target["masks"].sum(dim=(1, 2)).tolist() == [120, 120]
    assert dataset.class_names == ("nucleus",)
