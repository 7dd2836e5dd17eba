"""The command line: ``torchdcn VERB``, one small function a verb."""

from . import bench, demo, detect, evaluate, export, models, train
from .app import app, main

__all__ = ["app", "bench", "demo", "detect", "evaluate", "export", "main", "models", "train"]
