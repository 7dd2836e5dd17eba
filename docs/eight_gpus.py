"""What docs/training.md expects of 8 GPUs: `python docs/eight_gpus.py`. A calculation, from published figures."""

from __future__ import annotations

import tempfile
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from torchdcn.data import make_synthetic, open_dataset, train_transforms
from torchdcn.models import create_model

NAME, HEIGHT, WIDTH = "mask_rcnn_r50_fpn", 800, 1344
IMAGES_PER_S, V100, NVLINK, PCIE = 15.1, 15.7e12, 150e9, 15.8e9  # published: the table's, and NVIDIA's for the chip
GPUS, BATCH, PARAMETERS = 8, 2, 45.3e6


def gflop(module: torch.nn.Module, *shape: int) -> float:
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(shape, device="meta"))
    return counter.get_total_flops() / 1e9


def operations() -> tuple[float, float, float]:
    """GFLOP of an image at test time, in training's forward pass, and in what is frozen there."""
    model = create_model(NAME).eval().to("meta")
    heads = model.roi_heads
    body = gflop(model.backbone, 1, 3, HEIGHT, WIDTH)
    rpn = sum(
        gflop(torch.nn.Sequential(model.rpn.head.conv), 1, 256, -(-HEIGHT // s), -(-WIDTH // s))
        for s in (4, 8, 16, 32, 64)
    )
    # The deformable layers multiply as much as those they replace; their offsets and masks come on top.
    offsets = sum(
        n * 2 * 9 * channels * 27 * (HEIGHT // s) * (WIDTH // s) / 1e9
        for channels, n, s in ((128, 4, 8), (256, 6, 16), (512, 3, 32))
    )
    box = {n: gflop(heads.box_head, n, 256, 7, 7) for n in (512, 1000)}
    mask = {n: gflop(torch.nn.Sequential(heads.mask_head, heads.mask_predictor), n, 256, 14, 14) for n in (100, 128)}
    print(
        f"backbone and FPN {body:.0f}, RPN {rpn:.0f}, offsets {offsets:.0f}, box head {box[1000]:.0f}, "
        f"masks {mask[100]:.0f}"
    )
    frozen = gflop(torch.nn.Sequential(model.backbone.body.conv1), 1, 3, HEIGHT, WIDTH)
    frozen += gflop(model.backbone.body.layer1, 1, 64, HEIGHT // 4, WIDTH // 4)
    shared = body + rpn + offsets
    return shared + box[1000] + mask[100], shared + box[512] + mask[128], frozen


def main() -> None:
    test, forward, frozen = operations()
    speed = test * 1e9 * IMAGES_PER_S
    training = (3 * forward - 2 * frozen) * 1e9
    seconds = training / speed
    print(f"test {test:.0f} GFLOP an image: {speed / 1e12:.1f} TFLOP/s, {speed / V100:.0%} of a V100's")
    print(f"training {forward:.0f} GFLOP forward, {frozen:.0f} frozen: {training / 1e12:.2f} TFLOP an image")
    print(f"{seconds:.3f} s an image, {1 / seconds:.1f} images/s; {GPUS} GPUs at most {GPUS / seconds:.0f}")
    sent = PARAMETERS * 4 * 2 * (GPUS - 1) / GPUS
    print(
        f"gradients: {sent / 1e6:.0f} MB a step of {BATCH * seconds * 1e3:.0f} ms; "
        f"{sent / NVLINK * 1e3:.0f} ms by NVLink, {sent / PCIE * 1e3:.0f} ms by PCIe"
    )
    between = PARAMETERS * 4 * 2 * (2 * GPUS - 1) / (2 * GPUS)
    print(f"between two hosts {between / 1e6:.0f} MB: {between / 1.25e9:.2f} s at 10 Gbit/s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(make_synthetic(folder + "/scenes", train=20, val=1, size=640), "train", train_transforms())
        data[0]
        began = time.process_time()
        objects = sum(len(data[index][1]["labels"]) for index in range(20))
        spent = (time.process_time() - began) / 20
        print(f"loading: {spent * 1e3:.0f} ms of one core an image of 640 x 640 with {objects / 20:.1f} objects")


if __name__ == "__main__":
    main()
