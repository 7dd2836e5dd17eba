"""How good a detector is: COCO's figures."""

from .coco import Evaluation, class_table, evaluate, evaluate_coco, metrics_table
from .detector import check_fit, evaluate_detector, evaluations_of

__all__ = [
    "Evaluation",
    "check_fit",
    "class_table",
    "evaluate",
    "evaluate_coco",
    "evaluate_detector",
    "evaluations_of",
    "metrics_table",
]
