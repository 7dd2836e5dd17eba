"""Deformable convolution in plain PyTorch: the definition, the oracle, and the fallback of every other device.

Runs on any device and in any floating dtype, and is differentiable as often as one likes. It is written to be
read; the kernels in ``csrc`` compute the same numbers without ever storing the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def output_size(
    size: Sequence[int],  # (H, W) of the input
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def bilinear(
    input: Tensor,  # [N, C, H, W]
    y: Tensor,  # [N, G, P]: one position for all C / G channels of a group
    x: Tensor,  # [N, G, P]
    image: Tensor | None = None,  # [P]: which map each position is on, instead of one for each n; then N = G = 1 above
) -> Tensor:  # [N, C, P]
    """Samples a map that is zero outside, at any real position.

    Up to one pixel outside, a sample still blends with the border; further out it is 0, at infinity too. A NaN in
    either coordinate gives NaN. The derivative is that of the cell which ``floor`` picks, so on a grid line it is
    the one from below and from the right, as in torchvision.
    """
    C, H, W = input.shape[1:]
    N, G, P = y.shape
    maps = input.reshape(N * G, C // G, H * W) if image is None else input.transpose(0, 1).reshape(1, C, -1)

    # Far and NaN positions are parked at -2, where no corner of the cell lies on the map: neither converts to an
    # index, and infinity minus infinity would be NaN. What a NaN must give is added at the end; by way of a
    # sine, every derivative of which is NaN too.
    near = (y >= -1) & (y < H) & (x >= -1) & (x < W)
    poison = torch.where(y.isnan() | x.isnan(), y + x, 0).sin()
    y, x = torch.where(near, y, -2), torch.where(near, x, -2)

    y0, x0 = y.detach().floor(), x.detach().floor()
    sampled = poison.unsqueeze(2)  # [N, G, 1, P]
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            inside = ((row >= 0) & (row < H) & (column >= 0) & (column < W)).unsqueeze(2)
            pixel = row.long().clamp(0, H - 1) * W + column.long().clamp(0, W - 1)
            index = (pixel if image is None else pixel + image * (H * W)).reshape(N * G, 1, P)
            corner = maps.gather(2, index.expand(-1, C // G, -1)).reshape(N, G, C // G, P)
            # where(), not a product: what lies outside counts as 0 even if the pixel read instead is infinite.
            sampled = sampled + (wy * wx).unsqueeze(2) * torch.where(inside, corner, 0)
    return sampled.reshape(N, C, P)


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2 G K, Ho, Wo], (dy, dx) per tap
    mask: Tensor | None,  # [N, G K, Ho, Wo]
    weight: Tensor,  # [Co, C / groups, kh, kw], K = kh kw
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    deform_groups: int,
) -> Tensor:  # [N, Co, Ho, Wo]
    """Modulated deformable convolution, y(p) = sum_k w_k x(p + p_k + dp_k) dm_k (arXiv 1811.11168, equation 1).

    bfloat16 and float16 are computed in float32 and rounded once, at the end.
    """
    N, C, H, W = input.shape
    Co, _, kh, kw = weight.shape
    K, G = kh * kw, deform_groups
    Ho, Wo = output_size((H, W), (kh, kw), stride, padding, dilation)
    dtype = torch.promote_types(input.dtype, torch.float32)

    def taps(count: int, kernel: int, axis: int) -> Tensor:  # where tap i of output o sits without an offset
        grid = torch.arange(count, device=input.device) * stride[axis] - padding[axis]
        return (grid + torch.arange(kernel, device=input.device)[:, None] * dilation[axis]).to(dtype)

    shift = offset.to(dtype).reshape(N, G, kh, kw, 2, Ho, Wo)
    y = shift.select(4, 0) + taps(Ho, kh, 0).reshape(kh, 1, Ho, 1)
    x = shift.select(4, 1) + taps(Wo, kw, 1).reshape(1, kw, 1, Wo)
    columns = bilinear(input.to(dtype), y.reshape(N, G, K * Ho * Wo), x.reshape(N, G, K * Ho * Wo))
    if mask is not None:
        modulation = mask.to(dtype).reshape(N, G, 1, K * Ho * Wo)
        columns = columns.reshape(N, G, C // G, K * Ho * Wo) * modulation
    columns = columns.reshape(N, groups, C // groups * K, Ho * Wo)
    kernels = weight.to(dtype).reshape(groups, Co // groups, C // groups * K)
    return torch.matmul(kernels, columns).reshape(N, Co, Ho, Wo).to(input.dtype)
