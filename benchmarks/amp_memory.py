"""How much memory a training step takes beyond model and optimiser, in float32 and in mixed precision. Linux only."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import nullcontext

import torch

from torchdcn.bench.memory import peak_growth, worker_environment
from torchdcn.models import create_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mask_rcnn_r18_fpn_mdconv_c3-c5")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--amp", nargs="+", default=["none", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(f"{options.measure}: {measure(options) / 2**20:.0f} MiB")
        return
    for amp in options.amp:  # a process each: what an earlier one has freed would hide there
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", amp]
        subprocess.run(command, check=True, env=worker_environment())  # noqa: S603  # this very file


def measure(options: argparse.Namespace) -> int:
    torch.manual_seed(0)
    size, device = options.size, torch.device(options.device)
    model = create_model(options.model, num_classes=6, min_size=size, max_size=size).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    boxes = torch.tensor([[20.0, 20, 120, 100], [60, 80, 200, 220]], device=device)
    masks = torch.zeros(2, size, size, dtype=torch.uint8, device=device)
    masks[:, 60:100, 60:100] = 1
    target = {"boxes": boxes, "labels": torch.tensor([0, 3], device=device), "masks": masks}
    images = [torch.rand(3, size, size, device=device) for _ in range(options.batch)]
    dtype = DTYPES.get(options.measure)

    def step() -> None:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            losses = model(images, [dict(target) for _ in images])
        torch.stack([value.float() for value in losses.values()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    step()  # gradients and the optimiser's memory come into being; libraries load
    if device.type == "cpu":
        return peak_growth(step)[0]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
