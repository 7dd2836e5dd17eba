"""Deformable ConvNets v2 for today's PyTorch.

Importing the package imports torch and registers the operators, ``torch.ops.torchdcn.*``. The other rooms load when
they are first used: who needs only the operator does not wait for torchvision.
"""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def _is_command() -> bool:
    """Whether this process is the program ``torchdcn`` or ``python -m torchdcn``."""
    return Path(*sys.argv[:1]).stem == __name__ or ("-m", __name__) in pairwise(sys.orig_argv)


if not _is_command():  # the program's --help need not wait for torch; its verbs import what they use
    import_module(".ops", __name__)


def __dir__() -> list[str]:
    return sorted(__all__)
