"""How alike a box head's features are from one object to the next: the figures of docs/training.md on mimicking.

OMP_NUM_THREADS=1 python docs/examples/mimic_similarity.py ../shared/data/nuclei runs/nuclei-mdconv runs/nuclei-mimic
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchvision.ops import box_iou

from torchdcn.data import open_dataset
from torchdcn.models import create_model
from torchdcn.models.weights import read_info

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

IMAGES = 30


@torch.no_grad()
def features(model: Any, images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Unit-length 2-fc features of one image: of its annotated boxes, and of as many that meet none of them much."""
    batch, scaled = model.transform([image / 255 for image in images], targets)
    boxes = scaled[0]["boxes"]
    height, width = batch.image_sizes[0]
    size = boxes[:, 2:] - boxes[:, :2]
    corner = torch.rand(len(boxes), 2) * (torch.tensor([width, height]) - size).clamp(min=0)
    elsewhere = torch.cat([corner, corner + size], dim=1)
    elsewhere = elsewhere[box_iou(elsewhere, boxes).amax(1) < 0.1]
    maps = model.backbone(batch.tensors)
    found = model.roi_heads.box_features(maps, [torch.cat([boxes, elsewhere])], batch.image_sizes)
    return torch.nn.functional.normalize(found, dim=1).split([len(boxes), len(elsewhere)])


def cosines(model: Any, data: str) -> Iterator[tuple[float, float]]:
    """Of each image, the mean cosine between two of its objects, and between an object and background."""
    dataset = open_dataset(data, "val")
    for index in range(min(IMAGES, len(dataset))):
        image, target = dataset[index]
        objects, background = features(model, [image], [target])
        if len(objects) > 1 and len(background):
            pairs = objects @ objects.T
            yield (
                ((pairs.sum() - pairs.trace()) / (len(objects) * (len(objects) - 1))).item(),
                (objects @ background.T).mean().item(),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("run", nargs="+", help="Folder of a run of torchdcn train.")
    given = parser.parse_args()
    for run in given.run:
        torch.manual_seed(0)
        weights = Path(run) / "last.safetensors"
        model = create_model(read_info(weights).model, weights=weights).eval()
        of_objects, with_background = torch.tensor(list(cosines(model, given.data))).mean(0).tolist()
        print(f"{run}: two objects {of_objects:.3f}, object and background {with_background:.3f}")


if __name__ == "__main__":
    main()
