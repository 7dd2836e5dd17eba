"""Deformable ConvNets v2 for today's PyTorch.

``torchdcn.ops`` and ``torchdcn.nn`` come with this import; the detectors' rooms load when they are first used, so that
who needs only the operator doesn't wait for torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import nn, ops

if TYPE_CHECKING:
    from . import analysis, data, evaluation, interop, models, plotting, training
    from .detections import Detections
    from .detector import Detector

__version__ = "0.1.0"

__all__ = [
    "Detections",
    "Detector",
    "__version__",
    "analysis",
    "data",
    "evaluation",
    "interop",
    "models",
    "nn",
    "ops",
    "plotting",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in ("Detections", "Detector"):
        return getattr(import_module(f".{name.lower()}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
