"""Where a network looks."""

from .sampling import Node, SamplingLocations, sampling_locations

__all__ = ["Node", "SamplingLocations", "sampling_locations"]
