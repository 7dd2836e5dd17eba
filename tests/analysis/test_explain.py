from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from torch import nn

from torchdcn.analysis import (
    CancelledError,
    DetectedObjects,
    Node,
    effective_receptive_field,
    effective_sampling_locations,
    explain,
    find_node,
    layers_to_compare,
    node_at,
    support_summary,
)
from torchdcn.analysis.explain import picture_tensor
from torchdcn.detections import Detections
from torchdcn.detector import Detector
from torchdcn.nn import DeformConv2dPack

PICTURE = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
LAYER = "backbone.body.layer3"


def boxes_found(*boxes: tuple[float, ...]) -> DetectedObjects:
    """Detections without masks, all of them sure."""
    count = len(boxes)
    return DetectedObjects.from_detections(
        Detections(np.array(boxes).reshape(-1, 4), np.full(count, 0.9), np.zeros(count, int), None, ("cat",), (64, 80))
    )


def test_a_pixel_is_explained_by_its_node_and_the_object_there(detector: Any, unchanged: Any) -> None:
    model, pixels = detector(), picture_tensor(PICTURE)
    objects = boxes_found((0, 0, 20, 20), (30, 10, 70, 50))
    with unchanged(model):
        found = explain(model, PICTURE, (40, 30), layer=LAYER, objects=objects, kinds=["field", "sampling"])
    assert found.node == node_at(model, pixels, LAYER, 40, 30)
    assert found.object is not None
    assert found.object.index == 1
    assert found.region is None
    field, sampling = (
        function(model, pixels, found.node) for function in (effective_receptive_field, effective_sampling_locations)
    )
    assert found.field is not None
    assert found.field.response == field.response
    assert found.summaries == {"sampling": support_summary(sampling), "field": support_summary(field)}


def test_the_object_of_a_node_is_the_one_at_its_own_place_or_at_the_pixel_that_was_clicked(detector: Any) -> None:
    objects = boxes_found((30, 30, 35, 35), (24, 24, 29, 29))
    model, node = detector(), Node(LAYER, y=2, x=2)  # pixel 32, 32
    indices = [
        found.object.index if found.object else None
        for found in (
            explain(model, PICTURE, node, point, objects=objects, kinds=["field"])
            for point in (None, (26, 26), (50, 50))
        )
    ]
    assert indices == [0, 1, None]


def test_the_model_detects_the_objects_where_none_are_given(detector: Any, unchanged: Any) -> None:
    model = detector("mask_rcnn_r18_fpn_mdconv_c3-c5", mask_head_channels=(8,)).float()
    model.roi_heads.box_predictor.cls_score.bias.data[0] += 1
    seen = Detector(copy.deepcopy(model))(PICTURE)
    with unchanged(model):
        found = explain(model, PICTURE, seen.boxes[1].tolist(), kinds=["field"])
    assert found.object is not None
    assert (found.object.index, found.object.score) == (1, seen.scores[1])
    assert seen.masks is not None
    assert np.array_equal(found.object.mask(), seen.masks[1])


def test_the_numbers_are_json(detector: Any) -> None:
    found = explain(detector(), PICTURE, (40, 30), objects=boxes_found(), error=0.5)
    numbers = json.loads(json.dumps(found.to_json()))
    assert set(numbers) == {
        "node", "object", "object_index", "summaries", "layers", "centre", "response", "region",
    }  # fmt: skip
    assert numbers["region"]["error"] <= numbers["region"]["bound"] == 0.5
    assert list(numbers["summaries"]) == ["sampling", "field", "region"]


def test_each_kind_is_announced_and_the_search_can_be_stopped(detector: Any) -> None:
    begun: list[str] = []

    def progress(done: int, _: int) -> bool:
        return done < 3

    with pytest.raises(CancelledError):
        explain(
            detector(),
            PICTURE,
            (40, 30),
            objects=boxes_found(),
            on_start=begun.append,
            progress=progress,
        )
    assert begun == ["sampling", "field", "region"]


@pytest.mark.parametrize(
    ("place", "kinds", "message"),
    [
        ((40, 30), ["heat"], "^kinds: expected some of sampling, field, region, got"),
        ((90, 30), ["field"], "^x, y: expected a pixel of the image of 80 x 64"),
        ((90, 30, 99, 40), ["field"], "^node: roi .* is outside of the image of 80 x 64"),
        ((1, 2, 3), ["field"], "^node: expected roi"),
    ],
)
def test_what_can_not_be_explained_raises_one_line(detector: Any, place: Any, kinds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(detector(), PICTURE, place, objects=boxes_found(), kinds=kinds)


def test_a_box_needs_a_head_for_boxes() -> None:
    with pytest.raises(ValueError, match=r"^node: a roi needs a detector"):
        find_node(nn.Sequential(nn.Conv2d(3, 4, 3)), PICTURE, (1, 2, 30, 40))


def test_a_regular_network_shows_the_layers_of_the_deformable_one() -> None:
    def network(*deformable: int) -> nn.Module:
        return nn.Sequential(
            *((DeformConv2dPack if i in deformable else nn.Conv2d)(3, 3, 3, padding=1) for i in range(3))
        )

    shown = layers_to_compare([network(), network(0, 2), network(1), network()])
    assert shown == [["0", "2"], ["0", "2"], ["1"], ["0", "2"]]
    assert layers_to_compare([network(), nn.Sequential(nn.ReLU())]) == [[], []]
    assert layers_to_compare([network(2), nn.Sequential(nn.Conv2d(3, 3, 3))]) == [["2"], []]
    node, image = Node("2", y=4, x=4), picture_tensor(PICTURE)
    assert effective_sampling_locations(network(), image, node, regular=["0", "2"]).layers == ("0", "2")
    assert effective_sampling_locations(network(), image, node).layers == ("0", "1", "2")
    assert effective_sampling_locations(network(1), image, node, regular=["0", "2"]).layers == ("1",)
    # None of these is before the node: all ordinary convolutions before it are shown.
    assert effective_sampling_locations(network(), image, Node("1", y=4, x=4), regular=["2"]).layers == ("0", "1")
