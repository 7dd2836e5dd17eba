"""How much memory a detector's training step takes.

On the CPU a process of its own measures by how much it grows, on CUDA torch's allocator is asked; both count weights,
gradients, momentum, pictures and everything that lives on the way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict

import torch

from .detectors import Contender, autocast, build_detector, calibrate_random_weights, draw_image
from .memory import can_measure, peak_growth, worker_environment
from .predictions import draw_targets, fix_predictions

WARM_UP = "mask_rcnn_r18_fpn_mdconv_c3-c5"


def training_memory(
    contender: Contender, size: tuple[int, int], batch: int = 2, threads: int = 1, device: str = "cpu"
) -> int | None:
    """Bytes at the peak of a training step: forward, backward, SGD with momentum.

    Args:
        contender: The model.
        size: Height and width of the pictures.
        batch: How many.
        threads: Of torch.
        device: ``"cpu"`` or a CUDA device.

    Returns:
        The figure, or None where it can't be measured: on a CPU only Linux can. If the process that measures fails, a
        warning says why.
    """
    if not can_measure(device):
        return None
    if device != "cpu":
        return _cuda_peak(contender, size, batch, device)
    request = json.dumps({"contender": asdict(contender), "size": size, "batch": batch, "threads": threads})
    done = subprocess.run(  # noqa: S603  # this very module
        [sys.executable, "-m", __name__],
        input=request, capture_output=True, text=True, env=worker_environment(), check=False,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        warnings.warn(f"memory isn't measured: the process that does it failed ({reason})", stacklevel=2)
        return None
    return int(json.loads(done.stdout))


def training_step(contender: Contender, size: tuple[int, int], batch: int, device: str = "cpu") -> None:
    """Builds a model and takes one step, momentum's memory being there already."""
    model = build_detector(contender, size, device)
    image, targets = draw_image(size, device), [draw_targets(size, device) for _ in range(batch)]
    calibrate_random_weights(model.backbone, image)
    fix_predictions(model, size)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    torch.manual_seed(0)  # the same proposals are sampled for every contender
    with autocast(contender.amp, device):
        losses = model([image[0]] * batch, targets)
    sum(losses.values()).backward()
    optimizer.step()


def _cuda_peak(contender: Contender, size: tuple[int, int], batch: int, device: str) -> int:
    training_step(Contender(WARM_UP), (64, 96), 1, device)  # libraries take their workspaces
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    training_step(contender, size, batch, device)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def main() -> None:
    """Measures the step that stdin describes; writes a number."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    contender, size = Contender(**request["contender"]), tuple(request["size"])
    training_step(Contender(WARM_UP), (64, 96), 1)  # loads what is loaded once
    growth, _ = peak_growth(lambda: training_step(contender, size, request["batch"]))
    print(growth)  # noqa: T201  # read by training_memory


if __name__ == "__main__":
    main()
