"""Models as files that other runtimes run: ONNX."""

from .onnx import export_onnx

__all__ = ["export_onnx"]
