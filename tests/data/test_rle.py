from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from torchdcn.data.rle import rle_fault


def encoded(mask: np.ndarray) -> dict[str, Any]:
    return dict(coco_mask.encode(np.asfortranarray(mask, np.uint8)))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_what_coco_encodes_is_sound(share: float) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((32, 32), (480, 640), (1, 7)):
        rle = encoded(rng.random((height, width)) < share)
        assert rle_fault(rle, height, width) == ""
        assert rle_fault({**rle, "counts": rle["counts"].decode()}, height, width) == ""


@pytest.mark.parametrize("counts", ["zzzzz~~~~", "R2", [5, 5], "", "0é", "o" * 40, "oooooooooooo0", b"R2", "1000L"])
def test_damaged_run_lengths_are_faults(counts: Any) -> None:
    assert "RLE" in rle_fault({"size": [32, 32], "counts": counts}, 32, 32)


def test_truncated_run_lengths_are_faults() -> None:
    rle = encoded(np.random.default_rng(1).random((32, 32)) < 0.3)
    for end in range(1, len(rle["counts"])):
        assert rle_fault({**rle, "counts": rle["counts"][:end]}, 32, 32)


def test_no_size_is_a_fault() -> None:
    assert rle_fault({"counts": "PP1"}, 32, 32) == "expected an RLE of size [32, 32] as its image, got None"


def test_twelve_thousand_are_checked_at_once() -> None:
    rows, columns = np.mgrid[:480, :640]
    rle = encoded((rows - 200) ** 2 + (columns - 300) ** 2 < 150**2)
    began = time.process_time()
    for _ in range(12_000):
        rle_fault(rle, 480, 640)
    assert time.process_time() - began < 3  # about a third of a second on an idle core
