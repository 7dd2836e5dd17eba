from __future__ import annotations

import pytest
import torch

from torchdcn.bench.detectors import (
    Contender,
    build_detector,
    calibrate_random_weights,
    draw_image,
    group_contenders,
)
from torchdcn.models import list_models
from torchdcn.nn import ModulatedDeformConv2dPack
from torchdcn.weights.released import PUBLISHED

SIZE = (64, 96)
MDCONV = "faster_rcnn_r18_fpn_mdconv_c3-c5"


def test_the_published_models_run_beside_their_regular_counterparts() -> None:
    assert [[(str(one), one.amp) for one in group] for group in group_contenders(list(PUBLISHED))] == [
        [
            ("faster_rcnn_r50_fpn", "none"),
            ("faster_rcnn_r50_fpn_mdconv_c3-c5", "none"),
            ("faster_rcnn_r50_fpn_mdconv_c3-c5_group4", "none"),
            ("faster_rcnn_r50_fpn_mdpool", "none"),
        ],
        [("mask_rcnn_r50_fpn", "none"), ("mask_rcnn_r50_fpn_mdconv_c3-c5", "none")],
        [("mask_rcnn_r50_fpn", "bf16"), ("mask_rcnn_r50_fpn_fp16_mdconv_c3-c5", "bf16")],
    ]
    assert group_contenders(["mask_rcnn_r50_fpn_fp16_mdconv_c3-c5"], "cuda")[0][1].amp == "fp16"


def test_every_model_has_a_regular_counterpart_that_leads_its_group() -> None:
    groups = group_contenders(list_models())
    for first, *others in groups:
        assert first.regular
        assert (first.settings.conv, first.settings.pool) == (None, None)
        assert not any(other.regular for other in others)
        assert all(other.settings.conv or other.settings.pool for other in others)
    assert {one.name for group in groups for one in group} == set(list_models())


def test_a_regular_network_has_the_zoos_name_or_says_what_it_is() -> None:
    groups = group_contenders(["faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn_mdpool", "mask_rcnn_r50_dcnv2"])
    assert [str(group[0]) for group in groups] == [
        "faster_rcnn_r50_fpn",
        "mask_rcnn_r50_fpn",
        "mask_rcnn_r50_dcnv2, regular",
    ]


def test_a_wrong_name_is_named() -> None:
    with pytest.raises(ValueError, match=f"did you mean '{MDCONV}'"):
        group_contenders([MDCONV + "x"])


def test_random_networks_get_offsets_of_two_pixels_and_the_published_recipes_frozen_layers() -> None:
    model = build_detector(Contender("faster_rcnn_r50_fpn_mdconv_c3-c5"), SIZE)
    assert not model.backbone.body.conv1.weight.requires_grad
    assert not model.backbone.body.layer1[0].conv1.weight.requires_grad
    image = draw_image((160, 192))
    calibrate_random_weights(model.backbone, image)
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    offsets = []
    for pack in model.backbone.modules():
        if isinstance(pack, ModulatedDeformConv2dPack):
            pack.register_forward_pre_hook(lambda pack, x: offsets.append(pack.predict(x[0])[0]))
    with torch.no_grad():
        maps = model.backbone(image)
    assert len(offsets) == 13
    assert all(1.5 < offset.std() < 2.5 for offset in offsets)
    assert all(0.01 < one.std() < 100 for name, one in maps.items() if name != "pool")
