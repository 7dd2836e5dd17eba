"""Pictures in one batch beside one by one, in turn: how long each takes, and whether the results are the same bits."""

from __future__ import annotations

import argparse

import torch

from torchdcn.bench.detectors import Contender, build_detector, calibrate_random_weights, draw_image
from torchdcn.bench.timing import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mask_rcnn_r50_fpn_mdconv_c3-c5")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.size[0], options.size[1])
    model = build_detector(Contender(options.model), size).eval()
    calibrate_random_weights(model.backbone, draw_image(size))
    model.roi_heads.score_thresh = 0.02
    images = [torch.rand(3, *size) for _ in range(options.batch)]
    sizes = [size] * options.batch

    def together() -> list[dict[str, torch.Tensor]]:
        return model(images, original_sizes=sizes, mask_threshold=0.5)

    def alone() -> list[dict[str, torch.Tensor]]:
        return [model([image], original_sizes=[size], mask_threshold=0.5)[0] for image in images]

    with torch.inference_mode():
        pairs = list(zip(together(), alone(), strict=True))
        same = sum(all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
        seconds = measure({"together": together, "alone": alone}, options.rounds)
    print(f"{options.model}, {size[0]} x {size[1]}, {options.threads} threads, {len(pairs[0][0]['boxes'])} objects")
    print(f"one by one: {seconds['alone'] / options.batch:.3f} s a picture")
    print(f"batch of {options.batch}: {seconds['together'] / options.batch:.3f} s a picture")
    print(f"{same} of {options.batch} pictures gave the same bits")


if __name__ == "__main__":
    main()
