"""What a saliency region costs, as docs/seeing.md has it: ``python docs/examples/saliency_cost.py``."""

from __future__ import annotations

import time

import torch

from torchdcn.analysis import PASSES, Node, saliency_region
from torchdcn.models import create_model

SIDE = 256


def main() -> None:
    torch.manual_seed(0)
    model = create_model("mask_rcnn_r18_fpn_mdconv_c3-c5", num_classes=6, min_size=SIDE).eval()
    image = torch.rand(3, SIDE, SIDE)
    print(f"{SIDE} x {SIDE}, at most {PASSES} passes, {torch.get_num_threads()} threads")
    for node in (Node("backbone.body.layer4", y=4, x=4), Node(roi=(60, 60, 160, 180))):
        wall, busy = time.perf_counter(), time.process_time()
        region = saliency_region(model, image, node)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        print(f"{node}: {region.passes} passes, {wall:.1f} s, {busy:.1f} s of CPU time")


if __name__ == "__main__":
    main()
