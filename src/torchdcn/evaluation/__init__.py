"""How good a detector is: COCO's figures."""

from .coco import Evaluation, evaluate, evaluate_coco, evaluate_detector, metrics_table

__all__ = ["Evaluation", "evaluate", "evaluate_coco", "evaluate_detector", "metrics_table"]
