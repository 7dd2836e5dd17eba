"""Deformable ConvNets v2 for today's PyTorch.

The rooms load when they are first used, so that who needs only the operator doesn't wait for torchvision, and
``torchdcn --help`` not for torch. The operators are registered as soon as both torch and this package are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .imports import when_imported

if TYPE_CHECKING:
    from . import analysis, data, evaluation, interop, models, nn, ops, plotting, training
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


when_imported("torch", lambda: import_module(".ops", __name__))


def __dir__() -> list[str]:
    return sorted(__all__)
