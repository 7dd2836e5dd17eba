"""A video restoration network's alignment block, written for torchvision, before and after accelerate_torchvision().

The block is of the kind that EDVR (arXiv 1905.02716, section 3.2) is built around: features of a neighbouring frame are
aligned with those of the reference frame on a pyramid of three levels, coarse to fine. Nothing in it knows of torchdcn.

    python docs/examples/accelerate_torchvision.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu
from torchvision.ops import DeformConv2d

from torchdcn.ops import accelerate_torchvision


class Alignment(nn.Module):
    """Deformable alignment on one level; the offsets of the coarser level, if there is one, are refined."""

    def __init__(self, channels: int, offset_groups: int, coarser: bool) -> None:
        super().__init__()
        self.compare = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.refine = nn.Conv2d(2 * channels if coarser else channels, channels, 3, padding=1)
        self.offset_and_mask = nn.Conv2d(channels, 3 * 9 * offset_groups, 3, padding=1)
        self.deform = DeformConv2d(channels, channels, 3, padding=1)
        self.fuse = nn.Conv2d(2 * channels, channels, 3, padding=1) if coarser else None

    def forward(
        self,
        neighbour: Tensor,  # [N, C, H, W]
        reference: Tensor,  # [N, C, H, W]
        coarser: tuple[Tensor, Tensor] | None = None,  # motion and aligned features of half the size
    ) -> tuple[Tensor, Tensor]:
        """This level's motion features, from which the offsets follow, and the neighbour's features aligned."""
        motion = leaky_relu(self.compare(torch.cat([neighbour, reference], 1)), 0.1)
        if coarser is not None:
            above, aligned_above = (interpolate(t, scale_factor=2.0, mode="bilinear") for t in coarser)
            motion = torch.cat([motion, 2 * above], 1)  # a pixel of the coarser level is two of this one
        motion = leaky_relu(self.refine(motion), 0.1)
        dy, dx, mask = self.offset_and_mask(motion).chunk(3, 1)
        aligned = self.deform(neighbour, torch.cat([dy, dx], 1), mask.sigmoid())
        if coarser is not None and self.fuse is not None:
            aligned = self.fuse(torch.cat([aligned, aligned_above], 1))
        return motion, leaky_relu(aligned, 0.1)


class PyramidAlignment(nn.Module):
    """Three levels, each half as large as the one before; coarse offsets and features guide the finer ones."""

    def __init__(self, channels: int = 64, offset_groups: int = 8) -> None:
        super().__init__()
        self.shrink = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        self.levels = nn.ModuleList(Alignment(channels, offset_groups, coarser) for coarser in (True, True, False))

    def forward(self, neighbour: Tensor, reference: Tensor) -> Tensor:
        """The neighbour's features [N, C, H, W] where the reference's are; H and W are multiples of 4."""
        pyramid = [(neighbour, reference)]
        for shrink in self.shrink:
            pyramid.append(tuple(leaky_relu(shrink(t), 0.1) for t in pyramid[-1]))
        coarser = None
        for level, (one, other) in reversed(list(zip(self.levels, pyramid, strict=True))):
            coarser = level(one, other, coarser)
        return coarser[1]


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """The median, after one round that doesn't count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


def calls(model: nn.Module, neighbour: Tensor, reference: Tensor) -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    """The deformable layers of a model, with the arguments that they get for an input."""
    found: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: found.append((layer, inputs))) for layer in layers]
    with torch.inference_mode():
        model(neighbour, reference)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), help="of the features; multiples of 4")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    model = PyramidAlignment()
    neighbour, reference = torch.rand(2, 1, 64, *arguments.size).unbind()

    deformable = calls(model, neighbour, reference)

    def infer() -> Tensor:
        with torch.inference_mode():
            return model(neighbour, reference)

    def infer_deformable() -> None:
        with torch.inference_mode():
            for layer, inputs in deformable:
                layer(*inputs)

    def train() -> list[Tensor]:
        loss = model(neighbour, reference).square().mean()
        return list(torch.autograd.grad(loss, list(model.parameters())))

    def measure() -> tuple[dict[str, float], Tensor, list[Tensor]]:
        jobs = {"inference": infer, "its deformable layers": infer_deformable, "training step": train}
        return {name: milliseconds(job, arguments.rounds) for name, job in jobs.items()}, infer(), train()

    before, output_before, gradients_before = measure()
    accelerate_torchvision()  # reaches the model above, which was built before
    after, output, gradients = measure()

    size = " x ".join(map(str, (64, *arguments.size)))
    print(f"torch {torch.__version__}, {arguments.threads} threads, features {size}, median of {arguments.rounds}")
    for name, old in before.items():
        print(f"{name:22} before {old:6.0f} ms   after {after[name]:6.0f} ms   {old / after[name]:5.1f} times faster")
    difference = (output - output_before).abs().max() / output_before.abs().max()
    print(f"largest difference of the output: {difference:.1e} of its largest value")
    largest = max((new - old).norm() / old.norm() for old, new in zip(gradients_before, gradients, strict=True))
    print(f"largest difference of a gradient: {largest:.1e} of its norm")


if __name__ == "__main__":
    main()
