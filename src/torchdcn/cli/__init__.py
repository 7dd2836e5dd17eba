"""The command line: ``torchdcn VERB``, one small function a verb."""

from . import bench, bench_models, convert, demo, detect, evaluate, explain, export, models, serve, train
from .app import app, main

__all__ = [
    "app",
    "bench",
    "bench_models",
    "convert",
    "demo",
    "detect",
    "evaluate",
    "explain",
    "export",
    "main",
    "models",
    "serve",
    "train",
]
