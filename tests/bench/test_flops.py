from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torchdcn.bench import flops
from torchdcn.bench.flops import detection_flops
from torchdcn.models import create_model
from torchdcn.ops import available_backends

needs_kernels = pytest.mark.skipif(available_backends()["cpp"] != "", reason="RoI pooling counts in its kernels")
SMALL = {"rpn_post_nms_top_n_test": 40, "box_detections_per_img": 6, "min_size": 64, "max_size": 96}


@needs_kernels
@pytest.mark.parametrize("name", ["mask_rcnn_r18_fpn_mdconv_c3-c5", "faster_rcnn_r18_fpn_mdpool"])
def test_as_many_operations_are_counted_without_values_as_with_them(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, **SMALL, box_score_thresh=0.0).eval()  # and 2 x 2 samples a bin, as R-18 has
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        [found] = model([torch.rand(3, 64, 96)])
    assert len(found["boxes"]) == 6
    assert sum(detection_flops(name, (64, 96), **SMALL).values()) == counter.get_total_flops()


@needs_kernels
def test_deformable_layers_take_more_where_they_are() -> None:
    size = (64, 96)
    plain, conv = (
        detection_flops("faster_rcnn_r50_fpn", size),
        detection_flops("faster_rcnn_r50_fpn_mdconv_c3-c5", size),
    )
    pool = detection_flops("faster_rcnn_r50_fpn_mdpool", size)
    more = {
        kind: {part for part in plain if other[part] > plain[part]} for kind, other in (("conv", conv), ("pool", pool))
    }
    assert more == {"conv": {"backbone"}, "pool": {"boxes"}}
    # A convolution of 27 channels to each layer's input, and 8 for each of the 9 values of an output's channels.
    layers = [(128, 4, 8, 12), (256, 6, 4, 6), (512, 3, 2, 3)]
    expected = sum(count * rows * columns * 9 * width * (2 * 27 + 8) for width, count, rows, columns in layers)
    assert conv["backbone"] - plain["backbone"] == expected


@needs_kernels
def test_the_papers_own_detector_counts_too() -> None:
    found = detection_flops("mask_rcnn_r50_dcnv2", (64, 96))
    assert set(found) == set(flops.PARTS)
    assert all(count > 0 for count in found.values())


def test_what_can_not_be_counted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean 'faster_rcnn_r18_fpn'"):
        detection_flops("faster_rcnn_r18")
    with pytest.raises(ValueError, match="size: expected multiples of 32, got 60 x 96"):
        detection_flops("faster_rcnn_r18_fpn", (60, 96))
    monkeypatch.setattr("torchdcn.ops.available_backends", lambda: {"cpp": "not built"})
    with pytest.raises(RuntimeError, match=r"counting needs the C\+\+ kernels: not built"):
        detection_flops("faster_rcnn_r18_fpn")
