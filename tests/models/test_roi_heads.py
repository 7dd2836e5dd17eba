from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from torchdcn.models.roi_heads import build_roi_heads
from torchdcn.models.zoo import settings_of

SHAPES = [(64, 64), (64, 64)]


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return build_roi_heads(settings_of("mask_rcnn_r18_fpn"), num_classes=3)


@pytest.fixture
def maps():
    torch.manual_seed(1)
    return {str(i): torch.randn(2, 128, n, n) for i, n in enumerate((16, 8, 4, 2, 1))}


def test_boxes_go_to_the_level_that_fits_their_size(heads):
    sides = torch.tensor([1.0, 56, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    assert heads.box_roi_pool.levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("ratio", [None, 2], ids=["adaptive", "2"])
def test_pooling_keeps_the_order_of_boxes_over_levels_and_images(maps, ratio):
    heads = build_roi_heads(settings_of("mask_rcnn_r18_fpn", roi_sampling_ratio=ratio), num_classes=3)
    boxes = [torch.tensor([[0.0, 0, 300, 300], [4, 4, 20, 30]]), torch.tensor([[1.0, 2, 180, 190]])]
    pooled = heads.box_roi_pool(maps, boxes, SHAPES)
    for row, (image, box, level) in enumerate([(0, boxes[0][0], 2), (0, boxes[0][1], 0), (1, boxes[1][0], 1)]):
        rois = torch.cat([torch.tensor([image]), box])[None]
        expected = roi_align(maps[str(level)], rois, (7, 7), 1 / (4 * 2**level), ratio or 0, aligned=True)
        torch.testing.assert_close(pooled[row], expected[0])
    assert heads.box_roi_pool(maps, [torch.zeros(0, 4)] * 2, SHAPES).shape == (0, 128, 7, 7)


def detections(heads, logits, boxes=None):
    """What comes out where proposals are kept as they are."""
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 1, 21, 21], [40, 40, 60, 60]]) if boxes is None else boxes
    deltas = torch.zeros(len(boxes), 12)
    found = heads.postprocess_detections(logits, deltas, [boxes], [(64, 64)])
    return [part[0] for part in found]


def test_detections_have_labels_from_0_and_the_background_is_none_of_them(heads):
    logits = torch.tensor([[0.0, 0, 9, 0], [9.0, 0, 0, 0], [0.0, 0, 0, 7]])
    boxes, scores, labels = detections(heads, logits)
    assert labels.tolist() == [1, 2]
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]]))
    assert scores[0] > scores[1] > 0.9


def test_duplicates_of_a_class_go_and_those_of_another_stay(heads):
    logits = torch.tensor([[0.0, 9, 0, 0], [0.0, 8, 0, 0], [9.0, 0, 0, 0]])
    assert detections(heads, logits)[2].tolist() == [0]
    logits = torch.tensor([[0.0, 9, 0, 0], [0.0, 0, 8, 0], [9.0, 0, 0, 0]])
    assert detections(heads, logits)[2].tolist() == [0, 1]


def test_nothing_found_keeps_shapes_and_dtypes(heads, maps):
    for boxes in (torch.zeros(0, 4), torch.tensor([[0.0, 0, 20, 20]])):
        logits = torch.tensor([[9.0, 0, 0, 0]]).expand(len(boxes), 4)
        found, scores, labels = detections(heads, logits, boxes)
        assert (found.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
        assert labels.dtype == torch.int64
    heads.score_thresh = 1.0
    result, _ = heads.eval()(maps, [torch.zeros(0, 4), torch.tensor([[0.0, 0, 20, 20]])], SHAPES)
    assert [tuple(r["masks"].shape) for r in result] == [(0, 1, 28, 28)] * 2


def test_box_loss_is_l1_on_the_deltas_of_the_objects_class(heads, maps, target):
    heads.train()
    heads.box_predictor.bbox_pred.weight.data.zero_()
    bias = heads.box_predictor.bbox_pred.bias.data.zero_()
    goal = target((4, 4, 36, 36), labels=[2], size=(64, 64))
    none = target(size=(64, 64))
    # The only positive is the object itself, which needs no change: nothing to pay, unless its class's deltas move.
    losses = heads.losses(maps, [torch.zeros(0, 4)] * 2, SHAPES, [goal, none])
    assert losses["loss_box_reg"] == 0
    bias[4:8] = 1.0  # class 1 is not asked
    assert heads.losses(maps, [torch.zeros(0, 4)] * 2, SHAPES, [goal, none])["loss_box_reg"] == 0
    bias[8:12] = 1.0
    losses = heads.losses(maps, [torch.zeros(0, 4)] * 2, SHAPES, [goal, none])
    assert losses["loss_box_reg"].item() == pytest.approx(4.0)


def test_no_boxes_and_no_objects_at_all_still_have_finite_losses_and_gradients(heads, maps, target):
    heads.train()
    losses = heads.losses(maps, [torch.zeros(0, 4)] * 2, SHAPES, [target(size=(64, 64))] * 2)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
