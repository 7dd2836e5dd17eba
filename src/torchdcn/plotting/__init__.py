"""Every picture that the project makes, from plain arrays, in colours that colour-blind people can read."""

from .canvas import PALETTE, encode_png, readable_scale
from .charts import loss_curve, precision_recall
from .detections import draw_detections
from .sampling import draw_sampling_points
from .sheet import detections_grid
from .support import Support, figure_bytes, support_figure

__all__ = [
    "PALETTE",
    "Support",
    "detections_grid",
    "draw_detections",
    "draw_sampling_points",
    "encode_png",
    "figure_bytes",
    "loss_curve",
    "precision_recall",
    "readable_scale",
    "support_figure",
]
