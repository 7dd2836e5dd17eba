"""RoI pooling beside torchvision's roi_align on the same boxes.

``python benchmarks/roi_pool.py [--threads 2]``; on a GPU ``--device cuda [--dtype bfloat16]``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor

from torchdcn.ops import deform_roi_pool, instruction_set

BOXES, CHANNELS, BINS, SIZE, SCALE = 1000, 256, 7, (200, 336), 0.25


def draw_boxes() -> Tensor:  # [K, 5]
    """Boxes as an FPN's finest level gets them: 20 to 100 pixels wide and high, anywhere on the picture."""
    height, width = (n / SCALE for n in SIZE)
    centre = torch.rand(BOXES, 2) * torch.tensor([width, height])
    size = torch.exp(torch.rand(BOXES, 2) * 1.6 + 3)
    low, high = (centre - size / 2).clamp(min=0), torch.minimum(centre + size / 2, torch.tensor([width, height]))
    return torch.cat([torch.zeros(BOXES, 1), low, high], 1)


def milliseconds(
    contenders: dict[str, Callable[[], object]], rounds: int, wait: Callable[[], object]
) -> dict[str, float]:
    """Median times, taken in turns; `wait` is called before the clock is read, for what runs on a device."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    on_gpu = device.type == "cuda"
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    boxes, input = draw_boxes(), torch.randn(1, CHANNELS, *SIZE)
    offset, mask = torch.randn(BOXES, 2, BINS, BINS), torch.rand(BOXES, 1, BINS, BINS)
    input, offset, mask = (t.to(device, dtype) for t in (input, offset, mask))
    boxes = boxes.to(device, dtype if dtype == torch.float64 else torch.float32)
    place = torch.cuda.get_device_name(device) if on_gpu else f"{options.threads} threads, {instruction_set()}"
    print(
        f"{BOXES} boxes, {CHANNELS} channels, {BINS}x{BINS} bins, map {SIZE[0]}x{SIZE[1]}, {options.dtype}, "
        f"{place}; ms, median of {options.rounds}"
    )
    for sampling_ratio in (0, 2):

        def theirs(x: Tensor, *_: Tensor, ratio: int = sampling_ratio) -> Tensor:
            return torchvision.ops.roi_align(x, boxes.to(x.dtype), BINS, SCALE, ratio, aligned=True)

        def ours(x: Tensor, *deformed: Tensor, ratio: int = sampling_ratio) -> Tensor:
            return deform_roi_pool(x, boxes, BINS, *deformed, spatial_scale=SCALE, sampling_ratio=ratio)

        last = input.contiguous(memory_format=torch.channels_last)
        arguments = {
            "torchvision roi_align": (theirs, [input]),
            "ours, as roi_align": (ours, [input]),
            "ours, as roi_align, channels-last": (ours, [last]),
            "ours, offset and mask": (ours, [input, offset, mask]),
            "ours, offset and mask, channels-last": (ours, [last, offset, mask]),
        }

        try:
            theirs(input)
        except RuntimeError:  # it has no kernel for every dtype
            del arguments["torchvision roi_align"]

        def wait() -> None:
            if on_gpu:
                torch.cuda.synchronize(device)

        def train(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
            leaves = [t.detach().requires_grad_() for t in tensors]
            output = function(*leaves)
            torch.autograd.grad(output, leaves, torch.ones_like(output))

        in_turns = partial(milliseconds, rounds=options.rounds, wait=wait)
        forward = in_turns({n: lambda f=f, t=t: f(*t) for n, (f, t) in arguments.items()})  # type: ignore[misc]
        training = in_turns({n: lambda f=f, t=t: train(f, t) for n, (f, t) in arguments.items()})  # type: ignore[misc]
        print(f"sampling_ratio {sampling_ratio or '0 (adaptive)'}{'forward':>34}{'training':>10}")
        digits = 3 if on_gpu else 1
        for name in arguments:
            print(f"  {name:40}{forward[name]:10.{digits}f}{training[name]:10.{digits}f}")


if __name__ == "__main__":
    main()
