"""What torchdcn.nn.deformable costs: torchvision's ResNet-50 as it is and with its 13 layers c3 to c5 deformable."""

import argparse
import copy

import torch
from torch import nn
from torchvision.models import resnet50

from torchdcn.bench.timing import machine, measure
from torchdcn.nn import deformable, offset_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    plain, image = resnet50(), torch.rand(1, 3, arguments.size, arguments.size)
    deformed = deformable(copy.deepcopy(plain), where="layer[234].*.conv2")
    for parameter in offset_parameters(deformed):
        nn.init.normal_(parameter, std=0.003)  # offsets of 0.04 to 4.5 pixels, the deeper the larger

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            model.eval()(image)

    def both(model: nn.Module) -> None:
        model.train()(image).sum().backward()

    print(machine(), f"{arguments.threads} threads, 1 x 3 x {arguments.size} x {arguments.size}")
    for name, run in (("forward", forward), ("forward + backward", both)):
        models = {"plain": plain, "deformable": deformed}
        seconds = measure(
            {key: lambda run=run, model=model: run(model) for key, model in models.items()}, arguments.rounds
        )
        times = ", ".join(f"{key} {1000 * value:.0f} ms" for key, value in seconds.items())
        print(f"{name}: {times}, {seconds['deformable'] / seconds['plain']:.2f} x")


if __name__ == "__main__":
    main()
