"""Writes docs/models.md: `python docs/models_page.py`. Nothing in its tables is typed by hand but what was verified."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torchdcn.bench.flops import detection_flops
from torchdcn.models import list_models
from torchdcn.models.summary import Summary, summary
from torchdcn.models.zoo import settings_of
from torchdcn.weights.released import PUBLISHED

PAGE = Path(__file__).with_name("models.md")
LARGE, SMALL = (800, 1344), (256, 448)  # what a picture of 3 : 5 is resized and padded to, by default


class Check(NamedTuple):
    """Something that was compared: what, by which test, and of which models."""

    what: str
    tests: str
    names: frozenset[str]


# tests/models/test_models_page.py compares the names with those tests.
CHECKS = {
    "stages": Check(
        "with weights drawn by rule, what mmdetection computed: features and pooled regions to 5e-5, scores and deltas "
        "to 1e-4, 998 of 1000 proposals, 99 of 100 detections and masks, and the whole way from a picture's file; "
        "needs its results, which are not part of this project",
        "models/test_parity.py",
        frozenset(
            {
                "mask_rcnn_r50_fpn_mdconv_c3-c5",
                "faster_rcnn_r50_fpn_mdconv_c3-c5",
                "faster_rcnn_r50_fpn_mdpool",
            }
        ),
    ),
    "kept": Check(
        "a part of those results, which this project keeps: features, proposals, scores, deltas, detections "
        "(of mdpool, only up to scores and deltas)",
        "models/test_mmdet_numbers.py",
        frozenset({"faster_rcnn_r50_fpn_mdconv_c3-c5", "faster_rcnn_r50_fpn_mdpool"}),
    ),
    "keys": Check(
        "names and shapes of all tensors (needs mmdetection's lists), and the number of parameters",
        "interop/test_mmdet.py",
        frozenset(
            {
                "faster_rcnn_r50_fpn",
                "faster_rcnn_r50_fpn_dconv_c3-c5",
                "faster_rcnn_r50_fpn_mdconv_c3-c5",
                "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
                "faster_rcnn_r50_fpn_dpool",
                "faster_rcnn_r50_fpn_mdpool",
                "faster_rcnn_r101_fpn_dconv_c3-c5",
                "faster_rcnn_x101-32x4d_fpn_dconv_c3-c5",
                "mask_rcnn_r50_fpn",
                "mask_rcnn_r50_fpn_dconv_c3-c5",
                "mask_rcnn_r50_fpn_mdconv_c3-c5",
                "mask_rcnn_r101_fpn_dconv_c3-c5",
            }
        ),
    ),
    "step": Check(
        "a training step, with narrow heads and small pictures, gives every parameter that trains a finite gradient",
        "models/test_training_step.py",
        frozenset(
            {
                "faster_rcnn_r18_fpn",
                "mask_rcnn_r18_fpn_dconv_c3-c5",
                "mask_rcnn_r18_fpn_dpool",
                "mask_rcnn_r18_fpn_mdconv_c3-c5_mdpool",
                "faster_rcnn_r50_fpn_mdconv_c3-c5",
                "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
                "faster_rcnn_r50_fpn_mdpool",
                "mask_rcnn_r50_fpn_mdconv_c3-c5",
                "faster_rcnn_x101-32x4d_fpn_mdconv_c3-c5",
                "faster_rcnn_r50_dcnv2",
                "mask_rcnn_r50_dcnv2",
            }
        ),
    ),
    "layers": Check("the layers that the name says are there", "models/test_zoo.py", frozenset(list_models())),
}
ALIASES = {"mask_rcnn_r50_fpn_fp16_mdconv_c3-c5": "mask_rcnn_r50_fpn_mdconv_c3-c5"}

HEAD = f"""# The models

The tables on this page are written by `python docs/models_page.py`, and `pytest tests/models/test_models_page.py`
compares them with the models. `torchdcn models` lists the same on the command line.

- **deformable**: the layers that deform. c3 to c5 are the paper's names of the body's stages, `layer2` to `layer4` in
  torchvision; there every 3x3 convolution is replaced. dconv predicts offsets (Deformable ConvNets v1), mdconv offsets
  and a mask (v2). dpool and mdpool stand in the place of RoIAlign, with a pack for each pyramid level.
- **parameters**: all of them, for COCO's 80 classes.
- **GFLOP**: of detecting in one picture, counted by torch's `FlopCounterMode` (`torchdcn.bench.flops`):
  convolutions, matrix products, and what the deformable operators and RoIAlign sample, 8 for each value. A
  multiplication and an addition are two; figures that count them as one are half as large. For {LARGE[0]} x {LARGE[1]}
  pixels as the network sees them ({SMALL[0]} x {SMALL[1]} for R-18), 1000 proposals, 100 detections, bins of
  2 x 2 samples.
- **box AP, mask AP**: **published**, on COCO 2017 val, in percent. Nothing here has been evaluated on COCO.
- **verified**: which tests check the model, by the words of the next table: against what mmdetection 3.3 computed
  ("stages", "kept", "keys"), or by itself ("step", "layers"). "layers" is true of all models and named only where it
  is the one check.

| word | what was compared | command |
|---|---|---|
"""
TAIL = """
Weights files, and what a download is checked for: [weights.md](weights.md). The released weights themselves could not
be fetched where this was made, so no published AP was measured again. What has been trained here is R-18, from scratch
([README](../README.md)).
"""

SECTIONS = {
    "The published table": (
        'mmdetection\'s model table of DCNv2, 12 epochs of training. `weights="coco"` fetches these. '
        "The name with\n`fp16` is the model above it; its weights were trained in mixed precision.",
        lambda name: name in PUBLISHED,
    ),
    "The paper's own": (
        "R-50 with a dilated conv5 in place of a pyramid, proposals from conv4, mdpool for boxes and masks with one\n"
        "trunk for offsets and mask. AP: the paper's, for a short side of 1000 pixels, 16 epochs, without mimicking.\n"
        "There are no weights of them.",
        lambda name: name.endswith("_dcnv2"),
    ),
    "R-50": ("The regular network, DCNv1's layers, and mdconv together with mdpool.", lambda name: "_r50_fpn" in name),
    "R-101": ("", lambda name: "_r101_" in name),
    "ResNeXt-101-32x4d": ("", lambda name: "_x101" in name),
    "R-18": (
        "This project's own: GroupNorm, a pyramid of 128 channels, small anchors, for little data from scratch.",
        lambda name: "_r18_" in name,
    ),
}


COLUMNS = ("model", "deformable", "parameters", "GFLOP", "box AP", "mask AP", "verified")


def verified(name: str) -> str:
    words = [word for word, check in CHECKS.items() if ALIASES.get(name, name) in check.names]
    return ", ".join(words[:-1] or words)  # the last one goes for all


def size_of(name: str) -> tuple[int, int]:
    return SMALL if settings_of(name).backbone == "r18" else LARGE


def giga(flops: int) -> str:
    return f"{flops / 1e9:.{0 if flops >= 1e11 else 1}f}"


def row(found: Summary) -> str:
    flops = giga(sum(detection_flops(found.name, size_of(found.name)).values()))
    box, mask = (f"{ap}" if ap else "-" for ap in (found.box_ap, found.mask_ap))
    return line(f"`{found.name}`", found.layers or "-", f"{found.parameters:,}", flops, box, mask, verified(found.name))


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    text = HEAD
    for word, check in CHECKS.items():
        text += line(word, check.what, f"`pytest tests/{check.tests}`")
    text += TAIL
    left = list_models()
    for title, (words, belongs) in SECTIONS.items():
        names = [name for name in left if belongs(name)]
        left = [name for name in left if name not in names]
        text += f"\n## {title}\n\n" + (words and f"{words}\n\n") + line(*COLUMNS) + "|---" * len(COLUMNS) + "|\n"
        text += "".join(row(summary(name)) for name in names)
    if left:
        raise ValueError(f"SECTIONS: {left} are in none")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
