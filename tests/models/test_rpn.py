from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from torchdcn.models.rpn import AnchorGenerator, BoxCoder, Matcher, build_rpn
from torchdcn.models.zoo import settings_of

SIZES = ((32,), (64,), (128,), (256,), (512,))


def test_anchors_are_mmdetections_not_rounded_and_centred_on_the_grid():
    generator = AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.empty(1, 1, math.ceil(800 / s), math.ceil(1344 / s)) for s in (4, 8, 16, 32, 64)]
    [anchors] = generator(ImageList(torch.empty(1, 3, 800, 1344), [(800, 1333)]), maps)
    torch.testing.assert_close(anchors[0], torch.tensor([-22.6274, -11.3137, 22.6274, 11.3137]), atol=1e-4, rtol=0)
    torch.testing.assert_close(anchors[1], torch.tensor([-16.0, -16.0, 16.0, 16.0]))
    torch.testing.assert_close(anchors[4], torch.tensor([-12.0, -16.0, 20.0, 16.0]))  # x before y
    # 13 rows of stride 64 on 800 px: torchvision would take 800 // 13 = 61.
    last = anchors[-13 * 21 * 3 :].reshape(13, 21, 3, 4)
    torch.testing.assert_close(last[12, 20, 1], torch.tensor([1024.0, 512.0, 1536.0, 1024.0]))
    assert len(anchors) == sum(x.shape[2] * x.shape[3] * 3 for x in maps)


def test_anchors_stay_exact_after_maps_of_low_precision():
    generator = AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.empty(1, 3, 64, 64), [(64, 64)])
    maps = [torch.empty(1, 1, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]
    expected = generator(images, maps)[0]
    low = generator(images, [x.bfloat16() for x in maps])[0]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, atol=0, rtol=0)
    torch.testing.assert_close(generator(images, maps)[0], expected, atol=0, rtol=0)


def test_decoding_inverts_encoding_and_clamps_sizes_both_ways():
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0]])
    wanted = torch.tensor([[12.0, 15.0, 70.0, 45.0]])
    torch.testing.assert_close(coder.decode_single(coder.encode_single(wanted, boxes), boxes), wanted)
    huge, tiny = coder.decode_single(torch.tensor([[0.0, 0, 99, 99], [0.0, 0, -99, -99]]), boxes.repeat(2, 1))
    torch.testing.assert_close(huge[2:] - huge[:2], torch.tensor([40.0, 20.0]) * 62.5)
    torch.testing.assert_close(tiny[2:] - tiny[:2], torch.tensor([40.0, 20.0]) / 62.5, atol=1e-4, rtol=1e-4)
    assert coder.decode_single(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)


def test_an_objects_best_box_is_its_own_from_the_minimal_overlap_on():
    overlaps = torch.tensor([
        [0.9, 0.1, 0.4, 0.0],  # objects x boxes
        [0.0, 0.25, 0.1, 0.0],
        [0.8, 0.0, 0.0, 0.0],
    ])  # fmt: skip
    assert Matcher(0.7, 0.3, None)(overlaps).tolist() == [0, -1, -2, -1]
    assert Matcher(0.7, 0.3, 0.3)(overlaps).tolist() == [2, -1, -2, -1]  # the later object takes it
    assert Matcher(0.7, 0.3, 0.0)(overlaps).tolist() == [2, 1, -2, -1]
    assert Matcher(0.7, 0.3, 0.0)(torch.zeros(1, 3)).tolist() == [-1, -1, -1]  # no overlap is no match


@pytest.fixture
def proposer():
    settings = settings_of("faster_rcnn_r18_fpn")
    maps = {str(i): torch.randn(1, 128, n, n) for i, n in enumerate((16, 8, 4, 2, 1))}
    return build_rpn(settings), ImageList(torch.zeros(1, 3, 64, 64), [(60, 50)]), maps


def test_proposals_lie_on_the_image_without_its_padding(proposer):
    rpn, images, maps = proposer
    [boxes], losses = rpn.eval()(images, maps)
    assert losses == {}
    assert 0 < len(boxes) <= 1000
    assert boxes.min() >= 0
    assert boxes[:, 0::2].max() <= 50
    assert boxes[:, 1::2].max() <= 60
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_losses_are_averaged_over_the_sampled_anchors(proposer):
    rpn, *_ = proposer
    logits, deltas = torch.zeros(300, 1), torch.zeros(300, 4)
    labels = torch.cat([torch.ones(10), torch.zeros(280), -torch.ones(10)])
    objectness, box = rpn.compute_loss(logits, deltas, [labels], [torch.ones(300, 4)])
    assert objectness.item() == pytest.approx(math.log(2))
    assert box.item() == pytest.approx(10 * 4 / 256)  # L1, by all 256 samples


def test_an_image_without_objects_has_finite_losses(proposer):
    rpn, images, maps = proposer
    _, losses = rpn.train()(images, maps, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}])
    assert losses["loss_rpn_box_reg"] == 0
    assert losses["loss_objectness"].isfinite()


def test_the_papers_network_has_fifteen_anchors_at_each_position_of_conv4_alone():
    rpn = build_rpn(settings_of("faster_rcnn_r50_dcnv2")).eval()
    maps = {"conv4": torch.randn(1, 1024, 4, 5), "conv5": torch.randn(1, 256, 4, 5)}
    images = ImageList(torch.zeros(1, 3, 64, 80), [(64, 80)])
    [anchors] = rpn.anchor_generator(images, [maps["conv4"]])
    assert len(anchors) == 4 * 5 * 15
    torch.testing.assert_close(anchors[15 * 6 + 5], torch.tensor([0.0, 0.0, 32.0, 32.0]))  # row 1, column 1
    sides = (anchors[:15, 2:] - anchors[:15, :2]).prod(dim=1).sqrt()
    torch.testing.assert_close(sides, torch.tensor([32.0, 64, 128, 256, 512]).repeat(3))
    with torch.no_grad():
        [boxes], _ = rpn(images, maps)
    assert 0 < len(boxes) <= 300
    with torch.no_grad():
        [same], _ = rpn(images, maps | {"conv5": torch.zeros(1, 256, 4, 5)})
    assert torch.equal(boxes, same)
