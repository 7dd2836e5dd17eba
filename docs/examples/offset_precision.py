"""How much of a layer's error in 16 bits comes from its offsets: the figures of docs/operator.md.

python docs/examples/offset_precision.py
"""

import torch
from torch.nn.functional import conv2d

from torchdcn.ops import deform_conv2d


def blurred(maps: torch.Tensor, sigma: int) -> torch.Tensor:
    """Maps under a Gaussian of so many pixels, brought back to a standard deviation of 1."""
    x = torch.arange(-3 * sigma, 3 * sigma + 1.0)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(maps.shape[1], 1, 1, 1)
    for rows in (False, True):
        shaped = kernel.transpose(2, 3) if rows else kernel
        maps = conv2d(maps, shaped, padding="same", groups=maps.shape[1])
    return maps / maps.std()


def main() -> None:
    torch.manual_seed(0)
    weight, mask = torch.randn(64, 64, 3, 3) / 24, torch.rand(1, 9, 64, 64)
    input, moves = blurred(torch.randn(1, 64, 64, 64), 2), blurred(torch.randn(1, 18, 64, 64), 2)
    print("error relative to the output, offset and mask in float32 | in 16 bits too; features vary over 2 pixels")
    for pixels in (1, 4, 16):
        offset = pixels * moves
        exact = deform_conv2d(input.double(), offset.double(), weight.double(), padding=1, mask=mask.double())
        errors = []
        for dtype in (torch.bfloat16, torch.float16):
            for beside in (torch.float32, dtype):
                found = deform_conv2d(
                    input.to(dtype), offset.to(beside), weight.to(dtype), padding=1, mask=mask.to(beside)
                )
                errors.append(f"{float((found.double() - exact).norm() / exact.norm()):.2%}")
        print(f"offsets of {pixels:2} pixels: bfloat16 {errors[0]} | {errors[1]}, float16 {errors[2]} | {errors[3]}")


if __name__ == "__main__":
    main()
