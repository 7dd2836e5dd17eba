"""Where a network looks."""

from .locations import EffectiveLocations, effective_sampling_locations
from .node import Node, node_at
from .receptive_field import ReceptiveField, effective_receptive_field, response
from .saliency import PASSES, CancelledError, SaliencyRegion, saliency_region
from .sampling import SamplingLocations, sampling_locations
from .summary import SupportSummary, support_summary

__all__ = [
    "PASSES",
    "CancelledError",
    "EffectiveLocations",
    "Node",
    "ReceptiveField",
    "SaliencyRegion",
    "SamplingLocations",
    "SupportSummary",
    "effective_receptive_field",
    "effective_sampling_locations",
    "node_at",
    "response",
    "saliency_region",
    "sampling_locations",
    "support_summary",
]
