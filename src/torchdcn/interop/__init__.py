"""Ways to and from other projects: mmdetection's names, ONNX files."""

from ..models.weights import convert_mmdet
from .onnx import export_onnx

__all__ = ["convert_mmdet", "export_onnx"]
