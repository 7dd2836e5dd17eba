"""The command line: ``torchdcn VERB``, one small function a verb."""

from . import demo, detect, evaluate, models, train
from .app import app, main

__all__ = ["app", "demo", "detect", "evaluate", "main", "models", "train"]
