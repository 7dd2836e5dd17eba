"""Every private name of torchvision that detectors use, checked once when :mod:`torchdcn.models` is imported.

The other modules of this room take private classes from here. torchvision promises nothing about these names: if one
goes, the import fails with one line that names it, instead of a detector that trains by torchvision's rules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torchvision

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAMES", "BoxCoder", "IntermediateLayerGetter", "Matcher", "PrivateName", "find", "replace_attribute"]

_UTILS, _ANCHORS, _RPN, _HEADS, _TRANSFORM = (
    f"torchvision.models.detection.{name}" for name in ("_utils", "anchor_utils", "rpn", "roi_heads", "transform")
)


class PrivateName(NamedTuple):
    """A name that torchvision may take away.

    Attributes:
        module: Where it is.
        path: A class, its method, or ``Class().attribute`` where the constructor sets it.
        use: What detectors need it for.
        instead: What replaces it when it goes.
    """

    module: str
    path: str
    use: str
    instead: str


NAMES = (
    PrivateName(_UTILS, "BoxCoder", "encodes boxes as deltas", "encode and decode in rpn.py, 20 lines"),
    PrivateName(_UTILS, "BoxCoder.decode_single", "is overridden: sizes are clamped both ways", "override decode"),
    PrivateName(_UTILS, "BoxCoder().weights", "holds the factors of the deltas", "keep them in a class of ours"),
    PrivateName(_UTILS, "BoxCoder().bbox_xform_clip", "bounds the logarithm of sizes", "log(1000 / 16)"),
    PrivateName(_UTILS, "Matcher", "assigns objects to boxes", "the matching in rpn.py, 15 lines"),
    PrivateName(_UTILS, "Matcher.set_low_quality_matches_", "is overridden: from an IoU on", "override __call__"),
    PrivateName(_UTILS, "Matcher().high_threshold", "holds an IoU", "give it to our constructor"),
    PrivateName(_UTILS, "Matcher().low_threshold", "holds an IoU", "give it to our constructor"),
    PrivateName("torchvision.models._utils", "IntermediateLayerGetter", "gives conv4 and conv5 of a ResNet",
                "models.feature_extraction.create_feature_extractor, whose state dicts have other names"),
    PrivateName(_ANCHORS, "AnchorGenerator.generate_anchors", "is overridden: no rounding", "fill cell_anchors"),
    PrivateName(_ANCHORS, "AnchorGenerator().cell_anchors", "holds one position's anchors", "compute them in forward"),
    PrivateName(_RPN, "RegionProposalNetwork.compute_loss", "is overridden: L1, other averages", "override forward"),
    PrivateName(_RPN, "RegionProposalNetwork().box_coder", "is replaced by ours", "override forward"),
    PrivateName(_RPN, "RegionProposalNetwork().proposal_matcher", "is replaced by ours", "override forward"),
    PrivateName(_RPN, "RegionProposalNetwork().fg_bg_sampler", "draws samples; training seeds it", "override forward"),
    PrivateName(_RPN, "RegionProposalNetwork().min_size", "drops boxes without area alone", "override forward"),
    PrivateName(_HEADS, "RoIHeads.select_training_samples", "samples proposals with their targets",
                "match and sample in RoIHeads.losses, with Matcher and BoxCoder"),
    PrivateName(_HEADS, "RoIHeads.has_mask", "tells Mask R-CNN from Faster R-CNN", "ask settings.masks"),
    PrivateName(_HEADS, "RoIHeads().box_coder", "is replaced by ours", "as select_training_samples"),
    PrivateName(_HEADS, "RoIHeads().proposal_matcher", "is replaced by ours", "as select_training_samples"),
    PrivateName(_HEADS, "RoIHeads().fg_bg_sampler", "draws samples; training seeds it", "as select_training_samples"),
    PrivateName(_TRANSFORM, "GeneralizedRCNNTransform.resize", "is overridden: other rounding", "override forward"),
    PrivateName(_TRANSFORM, "GeneralizedRCNNTransform.normalize", "normalises images that are resized already",
                "subtract image_mean, divide by image_std"),
    PrivateName(_TRANSFORM, "GeneralizedRCNNTransform.torch_choice", "draws one of several sizes",
                "torch.randint, which draws others for a seed"),
    PrivateName(_TRANSFORM, "GeneralizedRCNNTransform.batch_images", "pads images to one size", "F.pad, torch.stack"),
    PrivateName(_TRANSFORM, "GeneralizedRCNNTransform.postprocess", "is overridden: other pasting of masks",
                "call it from RCNN.forward under another name"),
    PrivateName(_TRANSFORM, "resize_boxes", "scales boxes with their image", "multiply by the ratio of the sizes"),
)  # fmt: skip

EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "AnchorGenerator": lambda cls: cls(),
    "BoxCoder": lambda cls: cls((1.0, 1.0, 1.0, 1.0)),
    "Matcher": lambda cls: cls(0.7, 0.3),
    "RegionProposalNetwork": lambda cls: cls(None, None, 0.7, 0.3, 1, 0.5, {}, {}, 0.7),
    "RoIHeads": lambda cls: cls(None, None, None, 0.5, 0.5, 1, 0.5, None, 0.5, 0.5, 1),
}
"""How an object of each class is made, to look for the attributes that its constructor sets."""


def find(name: PrivateName) -> Any:
    """The object behind a name.

    Raises:
        ImportError: torchvision has no such name.
    """
    try:
        found: Any = import_module(name.module)
        for part in name.path.split("."):
            found = getattr(found, part.removesuffix("()"))
            if part.endswith("()"):
                found = EXAMPLES[part.removesuffix("()")](found)
    except (ImportError, AttributeError, TypeError) as error:
        raise ImportError(
            f"torchdcn.models: torchvision {torchvision.__version__} has no {name.module}.{name.path}, which "
            f"detectors need ({name.use}); install another version of torchvision, and report this one"
        ) from error
    return found


def replace_attribute(owner: Any, name: str, value: Any) -> None:
    """Sets an attribute of an object of torchvision's that has it already: otherwise nothing would read it.

    Raises:
        AttributeError: The object has no such attribute.
    """
    if not hasattr(owner, name):
        raise AttributeError(
            f"torchdcn.models: {type(owner).__name__} of torchvision {torchvision.__version__} has no {name} to "
            "replace; install another version of torchvision, and report this one"
        )
    setattr(owner, name, value)


_found = {name.path: find(name) for name in NAMES}
BoxCoder = _found["BoxCoder"]
Matcher = _found["Matcher"]
IntermediateLayerGetter = _found["IntermediateLayerGetter"]
