"""Every picture that the project makes, from plain arrays, in colours that colour-blind people can read."""

from .canvas import PALETTE, encode_png, readable_scale
from .charts import loss_curve, precision_recall
from .detections import draw_detections
from .sampling import draw_sampling_points
from .sheet import detections_grid

__all__ = [
    "PALETTE",
    "detections_grid",
    "draw_detections",
    "draw_sampling_points",
    "encode_png",
    "loss_curve",
    "precision_recall",
    "readable_scale",
]
