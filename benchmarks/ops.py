"""Deformable convolution beside the dense convolution of the same shape: ``make bench``.

The last column is what counts: the time over that of the dense convolution, in its faster layout, in the same run.
"""

import argparse
import math

import torch

from torchdcn.evaluation.speed import OURS, RESNET50, machine, measure, operator_contenders, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-peers", action="store_true", help="leave torchvision out, which is slow")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    for training in (False, True):
        ours = []
        for shape in RESNET50:
            contenders = operator_contenders(shape, training, peers=not arguments.no_peers)
            seconds = measure(contenders, arguments.rounds)
            print(f"\n{shape}, {'forward + backward' if training else 'forward'}")
            for name, ratio in ratios(seconds).items():
                print(f"  {name:26} {1000 * seconds[name]:9.1f} ms {ratio:8.2f} x dense")
            ours.append(ratios(seconds)[f"{OURS}, channels-last"])
        print(f"\ngeometric mean of {OURS}, channels-last: {math.prod(ours) ** (1 / len(ours)):.2f} x dense")


if __name__ == "__main__":
    main()
