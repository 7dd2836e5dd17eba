"""The embedded data set: scenes of jointed, bent figures that the project draws itself."""

from .dataset import make_synthetic

__all__ = ["make_synthetic"]
