"""Ways to and from other projects: mmdetection's names, ONNX files."""

from .mmdet import convert_mmdet, load_mmdet, to_mmdet
from .onnx import export_onnx

__all__ = ["convert_mmdet", "export_onnx", "load_mmdet", "to_mmdet"]
