"""What R-CNN feature mimicking costs in training: the table of docs/mimicking.md.

OMP_NUM_THREADS=1 python docs/examples/mimic_cost.py
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

MODEL = "mask_rcnn_r18_fpn_mdconv_c3-c5"
RUNS: dict[str, dict[str, Any]] = {
    "without mimicking": {},
    "32 crops an image of 224 pixels": {"mimic": True},
    "... 8 at once, computed twice": {"mimic": True, "mimic_crops_at_once": 8},
    "32 crops of 112 pixels": {"mimic": True, "mimic_patch_size": 112},
    "8 crops of 112 pixels": {"mimic": True, "mimic_patch_size": 112, "mimic_proposals": 8},
}
ROUNDS = 2


def one_step(settings: dict[str, Any]) -> tuple[float, float]:
    """CPU seconds of a training step on two images of 256x256 with 40 objects each, and the process's peak in GB."""
    import torch

    from torchdcn.models import create_model

    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=3, **settings)
    corner = torch.randint(0, 200, (40, 2))
    boxes = torch.cat([corner, corner + torch.randint(12, 56, (40, 2))], dim=1).float()
    target = {"boxes": boxes, "labels": torch.randint(3, (40,)), "masks": torch.ones(40, 256, 256, dtype=torch.uint8)}
    seconds = []
    for _ in range(2):  # the first fills caches
        start = time.process_time()  # what else the machine does counts less than on a clock
        sum(model(list(torch.rand(2, 3, 256, 256)), [target, target]).values()).backward()
        seconds.append(time.process_time() - start)
    return seconds[-1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measures the settings in turn, each in a process of its own."""
    if len(sys.argv) > 1:
        print(json.dumps(one_step(json.loads(sys.argv[1]))))
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNS}
    for _ in range(ROUNDS):
        for name, settings in RUNS.items():
            output = subprocess.check_output([sys.executable, __file__, json.dumps(settings)], text=True)  # noqa: S603  # this very file
            found[name].append(json.loads(output.splitlines()[-1]))
    for name, steps in found.items():
        seconds, peaks = zip(*steps, strict=True)
        print(
            f"{name:34} {statistics.median(seconds):6.2f} CPU s a step, {statistics.median(peaks):5.2f} GB at the peak"
        )


if __name__ == "__main__":
    main()
