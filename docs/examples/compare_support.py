"""The table of docs/seeing.md: ``OMP_NUM_THREADS=1 python docs/examples/compare_support.py``.

Asks three trained networks about the same nodes: every object of the first held-out scenes that all of them detect, as
a box and as the position of layer3 nearest to its middle. What lies on the object is measured with the annotated mask.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchdcn import Detector
from torchdcn.analysis import (
    Node,
    effective_receptive_field,
    effective_sampling_locations,
    node_at,
    saliency_region,
    sampling_locations,
    support_summary,
)
from torchdcn.data import CocoDetection
from torchdcn.models import create_model

if TYPE_CHECKING:
    from torch import Tensor

NETWORKS = {"regular": "", "dconv": "_dconv_c3-c5", "mdconv": "_mdconv_c3-c5"}
LAYER = "backbone.body.layer3"
# Ordinary in one network and deformable in the others; bins are the box's alone.
CONVOLUTIONS = [f"backbone.body.layer{stage}.{block}.conv2" for stage in (2, 3, 4) for block in (0, 1)]
SURE, OVERLAP = 0.5, 0.5


@dataclass(frozen=True)
class Asked:
    """An object that the networks are asked about."""

    scene: int
    name: str
    image: Tensor  # [3, H, W]
    mask: Tensor  # [H, W]
    box: tuple[float, ...]
    middle: tuple[float, float]  # x, y: the pixel of the object that is nearest to its middle


def objects(detectors: list[Detector], root: Path, scenes: int) -> list[Asked]:
    """What all networks detect, of the right class and with an IoU of at least a half."""
    data, found = CocoDetection(root, "val"), []
    for scene in range(scenes):
        image, target = data[scene]
        picture = image.permute(1, 2, 0).numpy()
        seen = [detector(picture).above(SURE) for detector in detectors]
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            if all(detected(one, np.asarray(box), int(label)) for one in seen):
                pixels = mask.nonzero().double()  # y, x
                middle = pixels[(pixels - pixels.mean(0)).square().sum(1).argmin()]
                place = float(middle[1]), float(middle[0])
                name = data.class_names[int(label)]
                found.append(Asked(scene, name, image / 255, mask, tuple(map(float, box)), place))
    return found


def detected(seen: Any, box: np.ndarray, label: int) -> bool:
    of = seen.boxes[seen.labels == label]
    sides = (np.minimum(of[:, 2:], box[2:]) - np.maximum(of[:, :2], box[:2])).clip(0)
    common = sides.prod(1)
    areas = (of[:, 2:] - of[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return bool((common / (areas - common) >= OVERLAP).any())


def measured(model: Any, asked: Asked, node: Node) -> dict[str, float]:
    """What gradients say of one network and node; shares in percent."""
    layers = [name for name in CONVOLUTIONS if node.roi is not None or "layer4" not in name]
    supports = {
        "samples": effective_sampling_locations(model, asked.image, node, layers),
        "field": effective_receptive_field(model, asked.image, node),
    }
    numbers = {}
    for kind, support in supports.items():
        summary = support_summary(support, asked.mask)
        numbers[f"{kind}: on the object, %"] = 100 * (summary.inside or 0)
        numbers[f"{kind}: radius, px"] = summary.radius
        numbers[f"{kind}: entropy, bits"] = summary.entropy
    return numbers


def region(model: Any, asked: Asked, node: Node, error: float) -> dict[str, float]:
    """The same of the saliency region."""
    found = saliency_region(model, asked.image, node, error)
    inside = support_summary(found, asked.mask).inside or 0
    return {"region: on the object, %": 100 * inside, "region: of the image, %": 100 * found.area}


def moved(model: Any, asked: Asked, node: Node) -> float:
    """How far offsets move the samples of three layers before a position on average, in pixels."""
    try:
        raw = sampling_locations(model, asked.image, node)
    except ValueError:  # there are no deformable layers
        return 0.0
    return float((raw.points - raw.regular).norm(dim=1).mean())


def table(rows: dict[str, list[dict[str, float]]]) -> None:
    """Means and standard errors; and of how many objects a network's number is above the regular one's."""
    print("| | " + " | ".join(rows) + " |\n|---|" + "---|" * len(rows))
    first = next(iter(rows.values()))
    for number in first[0]:
        cells = []
        for values in rows.values():
            own, base = ([value[number] for value in of] for of in (values, first))
            text = f"{statistics.fmean(own):.1f} ± {statistics.stdev(own) / len(own) ** 0.5:.1f}"
            above = sum(a > b for a, b in zip(own, base, strict=True))
            cells.append(text if values is first else f"{text} ({above} of {len(own)} above)")
        print(f"| {number} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument(
        "--regions", type=int, default=8, help="Of so many objects the saliency regions, which are slow."
    )
    parser.add_argument("--error", type=float, default=0.2)
    parser.add_argument("--data", type=Path, default=Path("runs/seeing-scenes"))
    parser.add_argument("--runs", default="runs/seeing-{}", help="Folder of a network's run.")
    given = parser.parse_args()
    models = {
        name: create_model(f"mask_rcnn_r18_fpn{ending}", weights=f"{given.runs.format(name)}/last.safetensors").eval()
        for name, ending in NETWORKS.items()
    }
    found = objects([Detector(model) for model in models.values()], given.data, given.scenes)
    for asked in found:
        print(f"scene {asked.scene}: {asked.name}, box {asked.box}, middle {asked.middle}", flush=True)
    share = statistics.fmean(100 * float((asked.mask > 0).float().mean()) for asked in found)
    print(f"{len(found)} objects; one covers {share:.1f} % of the image on average")
    tables: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number, asked in enumerate(found):
        for name, model in models.items():
            box, place = Node(roi=asked.box), node_at(model, asked.image, LAYER, *asked.middle)
            offsets = {"offsets move samples by, px": moved(model, asked, place)}
            numbers = {
                "box": measured(model, asked, box) | region(model, asked, box, given.error),
                "position": measured(model, asked, place) | region(model, asked, place, given.error) | offsets,
            }
            for kind, each in numbers.items():
                tables.setdefault(kind, {}).setdefault(name, []).append(each)
            print(f"object {number + 1} of {len(found)}, {name}", file=sys.stderr, flush=True)
    for kind, rows in tables.items():
        print(f"\n{kind}\n")
        table(rows)


if __name__ == "__main__":
    main()
