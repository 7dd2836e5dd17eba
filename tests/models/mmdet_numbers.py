"""What mmdetection 3.3.0 computed with weights that follow a rule, in a file small enough to live here.

The rule makes each tensor from its name and shape alone, so that a whole detector can be compared without a download.
``python tests/models/mmdet_numbers.py ../shared/vectors`` cut the file out of the results recorded there.
"""

from __future__ import annotations

import math
import re
import sys
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "mmdet_numbers.npz"
MDCONV, MDPOOL = "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", "faster-rcnn_r50_fpn_mdpool_1x_coco"

# The first pattern that a name has decides: a range of uniform numbers, the standard deviation of normal ones, or that
# times the square root of the fan-in.
UNIFORM = (
    (r"running_var$", (0.5, 1.5)),
    (r"\.bn3\.weight$", (0.15, 0.35)),
    (r"(\.bn\d|\.downsample\.1)\.weight$", (0.5, 1.0)),
)
NORMAL = (
    (r"(running_mean|(\.bn\d|\.downsample\.1)\.bias)$", 0.1),
    (r"conv_offset\.bias$", 0.4),
    (r"(offset_fc\.4|mask_fc\.2)\.bias$", 0.3),
    (r"fc_cls\.bias$", 0.5),
    (r"bias$", 0.05),
)
SCALED = (
    (r"layer2\..*conv_offset", 1.2),
    (r"layer3\..*conv_offset", 1.5),
    (r"layer4\..*conv_offset", 1.6),
    (r"lateral_convs\.0", 0.4),
    (r"lateral_convs\.1", 0.5),
    (r"lateral_convs\.2", 0.6),
    (r"lateral_convs\.3", 1.4),
    (r"fpn_convs|offset_fc\.4", 1.0),
    (r"rpn_cls|fc_reg", 0.8),
    (r"rpn_reg", 0.4),
    (r"mask_fc\.2", 1.5),
    (r"fc_cls", 1.1),
    (r"conv_logits", 2.5),
    (r"", math.sqrt(2)),
)


def _first(rules: tuple[tuple[str, object], ...], key: str) -> object:
    return next((value for pattern, value in rules if re.search(pattern, key)), None)


def tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that the rule makes for a name of mmdetection's."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    random = np.random.default_rng(zlib.crc32(key.encode()))
    if bounds := _first(UNIFORM, key):
        return random.uniform(*bounds, shape).astype(np.float32)
    deviation = _first(NORMAL, key)
    if deviation is None:
        fan_in = shape[0] if "upsample" in key else math.prod(shape[1:])
        deviation = _first(SCALED, key) / math.sqrt(fan_in)
    return (deviation * random.standard_normal(shape)).astype(np.float32)


def picture() -> np.ndarray:  # [1, 3, 500, 625], normalised
    """Noise of three scales, enlarged bilinearly, and a little of single pixels."""
    random = np.random.default_rng(777)
    height, width = 500, 625
    total = np.zeros((3, height, width))
    for cell, amplitude in ((64, 1.2), (16, 0.9), (4, 0.6)):
        coarse = random.standard_normal((3, height // cell + 2, width // cell + 2))
        rows, columns = (_enlarge(side, cell, n) for side, n in zip((height, width), coarse.shape[1:], strict=True))
        total += amplitude * (rows @ coarse @ columns.T)
    return (total + 0.05 * random.standard_normal(total.shape)).astype(np.float32)[None]


def _enlarge(pixels: int, cell: int, count: int) -> np.ndarray:  # [pixels, count]
    place = np.arange(pixels) / cell
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count)))


def cut(vectors: Path) -> dict[str, np.ndarray]:
    """The part of the recorded results that is kept here."""
    conv, pool = (np.load(vectors / "models" / f"{config}.pad512x640.npz") for config in (MDCONV, MDPOOL))
    second = pool["roi_levels"] == 1
    kept = {f"mdconv/{key}": conv[key] for key in ("proposals", "boxes", "scores", "labels")}
    kept |= {"mdconv/C5": conv["C5"][:, ::64], "mdconv/P4": conv["P4"][:, ::32], "mdconv/P2": conv["P2_mean_hw"]}
    kept |= {"mdconv/cls_score": conv["cls_score"][::10], "mdconv/bbox_pred": conv["bbox_pred"][::40]}
    kept |= {"mdpool/P3": pool["P3_mean_hw"], "mdpool/proposals": pool["proposals"][second]}
    kept |= {f"mdpool/{key}": pool[key][second] for key in ("roi_feats_sum", "cls_score")}
    return kept | {"mdpool/bbox_pred": pool["bbox_pred"][second][::3]}


if __name__ == "__main__":
    np.savez_compressed(FILE, **cut(Path(sys.argv[1])))
