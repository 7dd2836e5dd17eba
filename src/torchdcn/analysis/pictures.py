"""Pictures of what the analysis finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plotting import draw_sampling_points
from .explain import picture_tensor
from .node import node_at
from .raw_locations import sampling_locations

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


def draw_samples_in_box(
    model: nn.Module, picture: NDArray[np.uint8], box: Sequence[float], layer: str
) -> NDArray[np.uint8]:
    """Draws where the last deformable layers sample for the middle of a box.

    Args:
        model: A detector with deformable convolutions.
        picture: ``[H, W, 3]`` uint8.
        box: x1, y1, x2, y2 in pixels, such as a detection's.
        layer: Path of the layer whose node is asked about.

    Returns:
        ``[h, w, 3]`` uint8; see :func:`torchdcn.plotting.draw_sampling_points`.

    Raises:
        ValueError: There is no such layer, no deformable layer before it, or the box's middle is outside.

    Example:
        >>> import numpy as np
        >>> from torchdcn import models
        >>> from torchdcn.analysis import draw_samples_in_box
        >>> model = models.create_model("faster_rcnn_r18_fpn_mdconv_c3-c5", num_classes=2, min_size=64)
        >>> picture = np.zeros((64, 80, 3), np.uint8)
        >>> draw_samples_in_box(model, picture, (10, 20, 50, 60), "backbone.body.layer3").shape[2]
        3
    """
    x1, y1, x2, y2 = (float(side) for side in box)
    pixels = picture_tensor(picture)
    # Boxes count from the picture's corner, half a pixel before the first pixel's centre.
    node = node_at(model, pixels, layer, x=(x1 + x2 - 1) / 2, y=(y1 + y2 - 1) / 2)
    found = sampling_locations(model, pixels, node)
    return draw_sampling_points(picture, found.points, found.weights, found.centre, found.regular)
