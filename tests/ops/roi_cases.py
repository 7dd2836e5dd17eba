"""Cases of deformable RoI pooling, and how two implementations are compared on them."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor

from torchdcn.ops import deform_roi_pool

from . import cases

NAMES = ("input", "offset", "mask")
gradients = partial(cases.gradients, names=NAMES)
BACKENDS = ("reference", "cpp")

BOXES = torch.tensor(
    [
        [0, 0.0, 0.0, 40.0, 30.0],  # all of the map, its corner at the corner of the first pixel
        [1, 10.3, 7.7, 30.2, 20.9],
        [0, -12.5, -9.1, 20.3, 15.2],  # reaches out
        [1, 25.0, 18.0, 60.0, 50.0],
        [0, 5.0, 5.0, 5.5, 5.3],  # within a pixel
        [1, 20.0, 20.0, 20.0, 20.0],  # empty
        [0, 100.0, 100.0, 130.0, 120.0],  # off the map
        [1, 21.7, 2.2, 23.1, 30.6],  # tall
        [0, 30.0, 20.0, 10.0, 5.0],  # inside out
        [1, 12.0, 8.0, 26.0, 22.0],  # samples on the grid's lines
    ],
    dtype=torch.float64,
)


@dataclass(frozen=True)
class Case:
    name: str
    N: int = 2
    C: int = 5
    size: tuple[int, int] = (11, 15)
    bins: tuple[int, int] = (3, 2)
    spatial_scale: float = 0.37
    sampling_ratio: int = 0
    gamma: float = 0.1
    deformed: bool = True
    masked: bool = True
    boxes: Tensor | None = None

    def rows(self) -> Tensor:
        rows = BOXES if self.boxes is None else self.boxes
        return rows[rows[:, 0] < self.N]

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
        """Input, offset, mask."""
        generator = torch.Generator().manual_seed(0)
        K = self.rows().shape[0]

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator)

        return [
            draw(self.N, self.C, *self.size).to(dtype),
            draw(K, 2, *self.bins).to(dtype) if self.deformed else None,
            draw(K, 1, *self.bins).sigmoid().to(dtype) if self.masked else None,
        ]


CASES = [
    Case("adaptive"),
    Case("one sample", sampling_ratio=1),
    Case("3 samples", sampling_ratio=3),
    Case("large gamma", gamma=0.7),
    Case("offset only", masked=False, sampling_ratio=2),
    Case("mask only", deformed=False),
    Case("plain", deformed=False, masked=False),
    Case("plain of 2 samples", deformed=False, masked=False, sampling_ratio=2),
    Case("7x7 of 67 channels", C=67, bins=(7, 7)),
    Case("whole vectors", C=64, bins=(2, 7), sampling_ratio=2),
    Case("139 channels", N=1, C=139, bins=(1, 1)),
    Case("one pixel", N=1, size=(1, 1), spatial_scale=0.05),
    Case("a row", size=(1, 13)),
    Case("a column", size=(13, 1), C=1),
    Case("large bins", N=1, size=(40, 50), bins=(1, 2), spatial_scale=1.3),
    Case("more samples than are placed at a time", N=1, C=2, bins=(1, 2), sampling_ratio=401, boxes=BOXES[:1]),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
each_backend = pytest.mark.parametrize("name", BACKENDS)


def ours(case: Case, tensors: list[Tensor | None]) -> Tensor:
    input, offset, mask = tensors
    assert input is not None
    positions = input.dtype if input.dtype == torch.float64 else torch.float32
    return deform_roi_pool(
        input, case.rows().to(positions), case.bins, offset, mask, case.spatial_scale, case.sampling_ratio, case.gamma
    )


def torchvisions(case: Case, tensors: list[Tensor | None]) -> Tensor:
    """RoIAlign times the mask, which is all that torchvision has."""
    input, _, mask = tensors
    assert input is not None
    output: Tensor = torchvision.ops.roi_align(
        input, case.rows().to(input.dtype), case.bins, case.spatial_scale, case.sampling_ratio, aligned=True
    )
    return output if mask is None else output * mask


def one_by_one(case: Case, tensors: list[Tensor | None]) -> Tensor:
    """Straight from the formula, a sample at a time, differentiated by torch."""
    input, offset, mask = tensors
    assert input is not None
    (H, W), (ph, pw) = case.size, case.bins
    output = []
    for k, row in enumerate(case.rows()):
        image = input[int(row[0])]
        x1, y1, x2, y2 = (float(v) * case.spatial_scale - 0.5 for v in row[1:])
        height, width = (y2 - y1) / ph, (x2 - x1) / pw
        ratio = case.sampling_ratio
        down = ratio or max(0, int(torch.tensor(height).ceil()))
        across = ratio or max(0, int(torch.tensor(width).ceil()))
        for b in range(ph * pw):
            i, j = divmod(b, pw)
            dx, dy = (0.0, 0.0) if offset is None else case.gamma * offset[k, :, i, j]
            total = 0 * image[:, 0, 0]
            for s in range(down * across):
                y = y1 + dy * (y2 - y1) + i * height + (s // across + 0.5) * height / down
                x = x1 + dx * (x2 - x1) + j * width + (s % across + 0.5) * width / across
                if -1 <= y <= H and -1 <= x <= W:
                    total = total + _bilinear(image, _clamped(y, H), _clamped(x, W))
            factor = 1.0 if mask is None else mask[k, 0, i, j]
            output.append(total * factor / max(1, down * across))
    return torch.stack(output).reshape(-1, ph, pw, case.C).permute(0, 3, 1, 2)


def _clamped(v: Tensor | float, length: int) -> Tensor | float:
    return 0.0 if v < 0 else float(length - 1) if v >= length - 1 else v


def _bilinear(image: Tensor, y: Tensor | float, x: Tensor | float) -> Tensor:  # [C, H, W] -> [C]
    top, left = int(y), int(x)
    bottom, right = min(top + 1, image.shape[1] - 1), min(left + 1, image.shape[2] - 1)
    above = image[:, top, left] * (left + 1 - x) + image[:, top, right] * (x - left)
    below = image[:, bottom, left] * (left + 1 - x) + image[:, bottom, right] * (x - left)
    return above * (top + 1 - y) + below * (y - top)
