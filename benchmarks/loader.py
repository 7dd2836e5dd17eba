"""How fast images are loaded, alone and while a model trains, and how many cores that keeps busy."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

import torch

from torchdcn.data import collate, open_dataset, train_transforms
from torchdcn.models import create_model
from torchdcn.nn.layout import channels_last
from torchdcn.training.batches import BatchLoader, epoch_plan
from torchdcn.training.seeded_sampler import seeded_samplers

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a folder in COCO's format, or 'synthetic'")
    parser.add_argument("--model", default="mask_rcnn_r18_fpn_mdconv_c3-c5")
    parser.add_argument("--min-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=400, help="to load; an epoch is repeated as often as it takes")
    parser.add_argument("--trained", type=int, default=40, help="images to train on")
    options = parser.parse_args()
    dataset = open_dataset(options.data, "train", train_transforms())
    step = training_step(options, dataset)
    print(f"{len(dataset)} images, batch size {options.batch_size}, {torch.get_num_threads()} threads of torch")
    for workers in options.workers:
        alone = measure(dataset, options.images, options.batch_size, workers)
        beside = measure(dataset, options.trained, options.batch_size, workers, step)
        print(
            f"{workers} workers: {alone['images_per_s']:.1f} images/s alone ({alone['cores']:.2f} cores busy, "
            f"{1000 * alone['cores'] / alone['images_per_s']:.1f} ms of processor time an image); "
            f"training {beside['images_per_s']:.2f} images/s ({beside['cores']:.2f} cores busy, "
            f"{100 * beside['waited']:.1f} % of the time waits for images)",
            flush=True,
        )


def training_step(options: argparse.Namespace, dataset: Any) -> Callable[[Any], None]:
    torch.manual_seed(0)
    settings = {"min_size": options.min_size, "num_classes": len(dataset.class_names)}
    model = channels_last(create_model(options.model, **settings))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    samplers = seeded_samplers(model)

    def step(batch: Any) -> None:
        for sampler in samplers:
            sampler.seeds = [seed for _, seed in batch.draws]
        optimiser.zero_grad()
        torch.stack(list(model(batch.images, batch.targets).values())).sum().backward()
        optimiser.step()

    return step


def measure(
    dataset: Any, images: int, batch_size: int, workers: int, step: Callable[[Any], None] | None = None
) -> dict[str, float]:
    plan: list[Any] = []
    while len(plan) * batch_size < images:
        plan += epoch_plan(len(dataset), batch_size, seed=0, epoch=len(plan))
    plan = plan[: max(2, images // batch_size) + 1]
    loaded, waited = 0, 0.0
    with BatchLoader(dataset, collate, workers) as loader:
        batches = loader.load(plan)
        next(batches)  # the workers' start isn't the question
        began, before = time.perf_counter(), busy_seconds()
        for _ in plan[1:]:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            loaded += len(batch.images)
            if step is not None:
                step(batch)
        took = time.perf_counter() - began
        used = busy_seconds() - before
    return {"images_per_s": loaded / took, "waited": waited / took, "cores": used / took}


def busy_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    import psutil

    me = psutil.Process(os.getpid())
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
