"""Ways to and from other projects: mmdetection's names, ONNX files."""

from ..export import export_onnx
from ..weights.mmdet import convert_mmdet
from .mmdet import load_mmdet, to_mmdet

__all__ = ["convert_mmdet", "export_onnx", "load_mmdet", "to_mmdet"]
