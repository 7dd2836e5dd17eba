"""Where a network looks: what one node depends on, and how much of it lies on the object there."""

from .effective_locations import EffectiveLocations, effective_sampling_locations
from .explain import Explanation, explain, find_node, layers_to_compare
from .node import Node, node_at
from .objects import DetectedObject, DetectedObjects
from .pictures import draw_samples_in_box
from .raw_locations import SamplingLocations, sampling_locations
from .receptive_field import ReceptiveField, effective_receptive_field, response
from .saliency import PASSES, CancelledError, SaliencyRegion, saliency_region
from .summary import SupportSummary, support_summary

__all__ = [
    "PASSES",
    "CancelledError",
    "DetectedObject",
    "DetectedObjects",
    "EffectiveLocations",
    "Explanation",
    "Node",
    "ReceptiveField",
    "SaliencyRegion",
    "SamplingLocations",
    "SupportSummary",
    "draw_samples_in_box",
    "effective_receptive_field",
    "effective_sampling_locations",
    "explain",
    "find_node",
    "layers_to_compare",
    "node_at",
    "response",
    "saliency_region",
    "sampling_locations",
    "support_summary",
]
