from __future__ import annotations

import numpy as np
import pytest
import torch

from torchdcn.models import create_model, list_models
from torchdcn.models.zoo import PAPER, settings_of
from torchdcn.nn import DeformConv2dPack, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from torchdcn.weights.released import PUBLISHED


def test_lists_every_combination_of_heads_backbone_and_layers():
    names = list_models()
    assert len(names) == len(set(names)) == 2 * 4 * 7 + 2 + 1
    suffixes = (
        "",
        "_dconv_c3-c5",
        "_mdconv_c3-c5",
        "_mdconv_c3-c5_group4",
        "_dpool",
        "_mdpool",
        "_mdconv_c3-c5_mdpool",
    )
    for heads in ("faster", "mask"):
        assert f"{heads}_rcnn_r50_dcnv2" in names
        for backbone in ("r18", "r50", "r101", "x101-32x4d"):
            assert {f"{heads}_rcnn_{backbone}_fpn{suffix}" for suffix in suffixes} <= set(names)
    assert "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5" in names


def test_names_choose_layers():
    settings = settings_of("mask_rcnn_r101_fpn_mdconv_c3-c5_mdpool")
    assert (settings.backbone, settings.conv, settings.pool, settings.pool_masks) == ("r101", "mdconv", "mdpool", False)
    assert (settings_of("faster_rcnn_r50_fpn_dpool").conv, settings_of("faster_rcnn_r50_fpn_dpool").pool) == (
        None,
        "dpool",
    )
    paper = settings_of("mask_rcnn_r50_dcnv2")
    assert (paper.fpn, paper.pool, paper.pool_masks, paper.conv) == (False, "mdpool", True, "mdconv")
    assert (paper.anchor_sizes, paper.sizes) == (((32, 64, 128, 256, 512),), (1000,))


def test_small_models_keep_the_settings_that_were_trained():
    for suffix in ("", "_mdconv_c3-c5", "_mdpool"):
        settings = settings_of(f"mask_rcnn_r18_fpn{suffix}")
        assert (settings.fpn_channels, settings.box_head_channels, settings.roi_sampling_ratio) == (128, 256, 2)
        assert (settings.min_size, settings.max_size, settings.mask_head_channels) == (256, 512, (64, 64))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("faster_rcnn_r50_fpn", 41_753_056),
        ("faster_rcnn_r50_fpn_dconv_c3-c5", 42_333_898),
        ("faster_rcnn_r50_fpn_mdconv_c3-c5", 42_624_319),
        ("faster_rcnn_r50_fpn_mdconv_c3-c5_group4", 45_238_108),
        ("faster_rcnn_r50_fpn_dpool", 97_737_576),
        ("faster_rcnn_r50_fpn_mdpool", 149_322_796),
        ("faster_rcnn_r101_fpn_dconv_c3-c5", 62_031_356),
        ("faster_rcnn_x101-32x4d_fpn_dconv_c3-c5", 62_945_532),
        ("mask_rcnn_r50_fpn", 44_396_336),
        ("mask_rcnn_r50_fpn_dconv_c3-c5", 44_977_178),
        ("mask_rcnn_r50_fpn_mdconv_c3-c5", 45_267_599),
        ("mask_rcnn_r101_fpn_dconv_c3-c5", 64_674_636),
    ],
)
def test_models_have_as_many_parameters_as_mmdetections(name: str, parameters: int):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", list_models())
def test_every_name_makes_a_model_with_the_layers_that_it_says(name: str):
    with torch.device("meta"):
        model = create_model(name)
    modules = list(model.modules())
    assert any(isinstance(m, DeformConv2dPack) for m in modules) == ("dconv" in name or "dcnv2" in name)
    pools = [m for m in modules if isinstance(m, DeformRoIPoolPack)]
    both = "mask" in name
    assert len(pools) == (1 + both if "dcnv2" in name else 4 if "pool" in name else 0)
    modulated = "mdpool" in name or "dcnv2" in name
    assert all(isinstance(pool, ModulatedDeformRoIPoolPack) == modulated for pool in pools)
    assert (model.roi_heads.mask_predictor is not None) == both


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mask_rcnn_r50_fpn_mdconv_c3-c5'"):
        create_model("mask_rcnn_r50_fpn_mdconv_c3_c5")
    with pytest.raises(ValueError, match="no model ''"):
        create_model("")


def test_a_name_like_no_other_gets_no_suggestion():
    for name in ("foo", "yolov8"):
        with pytest.raises(ValueError, match=rf"^name: there is no model '{name}'; list_models\(\) names them all$"):
            create_model(name)


def test_an_unknown_override_is_named_with_the_nearest_or_the_place_of_all():
    place = r"torchdcn\.models\.settings\.Settings lists them$"
    with pytest.raises(TypeError, match=rf"^min_sise: not a setting of a model; did you mean 'min_size'\? {place}"):
        create_model("faster_rcnn_r18_fpn", min_sise=100)
    with pytest.raises(TypeError, match=rf"^foo: not a setting of a model; {place}"):
        create_model("faster_rcnn_r18_fpn", foo=1)
    with pytest.raises(TypeError, match=r"^pretrained: not a setting of a model; give weights= or weights_backbone=$"):
        create_model("faster_rcnn_r18_fpn", pretrained=True)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("min_size", 0),
        ("min_size", ()),
        ("min_size", (64, -1)),
        ("max_size", 2.5),
        ("norm", "layer"),
        ("conv", "deform"),
        ("pool", "mdconv"),
        ("pool_channels", 0),
        ("pool_masks", 1),
        ("fpn", False),
        ("backbone", "r34"),
        ("deform_stages", ("c1",)),
        ("trainable_backbone_layers", 6),
        ("anchor_sizes", (8, 16)),
        ("anchor_sizes", ((8,), (16,), (32,), (64,), (128, 256))),
        ("anchor_sizes", (0, 16, 32, 64, 128)),
        ("aspect_ratios", ()),
        ("image_std", (0.2, 0.2, 0)),
        ("box_score_thresh", 1.5),
        ("box_score_thresh", float("nan")),
        ("box_detections_per_img", 0),
        ("mask_head_channels", (64, 0)),
        ("mask_head_channels", 8),
        ("trainable_backbone_layers", 2.0),
        ("trainable_backbone_layers", True),
        ("bbox_reg_weights", (0, 0, 0, 0)),
        ("bbox_reg_weights", ("a",) * 4),
        ("image_mean", ["a", 1, 2]),
        ("masks", "yes"),
        ("anchor_sizes", 8),
        ("anchor_sizes", (8, (16,), 32, 64, 128)),
        ("deform_stages", ({},)),
        ("box_fg_iou_thresh", 0.4),
        ("rpn_fg_iou_thresh", 0.2),
    ],
)
def test_a_setting_that_cannot_be_names_itself(override: str, value: object):
    with pytest.raises(ValueError, match=rf"^{override}: expected"):
        settings_of("mask_rcnn_r18_fpn", **{override: value})


def test_a_larger_short_side_takes_the_longest_along_unless_that_is_given():
    def sizes(**overrides):
        settings = settings_of("faster_rcnn_r18_fpn", **overrides)
        return settings.min_size, settings.max_size

    assert sizes() == (256, 512)
    assert sizes(min_size=800) == (800, 1600)
    assert sizes(min_size=(320, 640)) == ((320, 640), 1280)
    assert sizes(min_size=800, max_size=1000) == (800, 1000)
    assert sizes(min_size=64) == (64, 512)  # a small one leaves room for long pictures


def test_lists_as_json_has_them_mean_the_same_as_tuples():
    settings = settings_of("faster_rcnn_r18_fpn", min_size=[64, 96], anchor_sizes=[8, 16, 32, 64, 128])
    assert settings == settings_of("faster_rcnn_r18_fpn", min_size=(64, 96))
    assert settings.sizes == (64, 96)


def test_without_a_pyramid_sizes_are_those_of_the_one_level():
    settings = settings_of("faster_rcnn_r50_dcnv2", anchor_sizes=[16, 32])
    assert settings.anchor_sizes == ((16, 32),)
    assert settings_of("faster_rcnn_r50_dcnv2", anchor_sizes=[[16, 32]]) == settings
    with pytest.raises(ValueError, match="anchor_sizes: expected 1 entries"):
        settings_of("faster_rcnn_r50_fpn", fpn=False)


def test_numpys_numbers_are_numbers():
    settings = settings_of("faster_rcnn_r18_fpn", min_size=np.int64(64), box_nms_thresh=np.float32(0.5))
    assert (type(settings.min_size), type(settings.box_nms_thresh)) == (int, float)
    model = create_model("faster_rcnn_r18_fpn", num_classes=np.int64(3))
    assert (model.num_classes, type(model.num_classes)) == (3, int)


def test_a_name_is_text_and_classes_are_counted():
    with pytest.raises(TypeError, match=r"name: expected one of list_models\(\), got \[1\]"):
        create_model([1])
    for wrong in (True, 2.0, "3"):
        with pytest.raises(ValueError, match="num_classes: expected a positive int"):
            create_model("faster_rcnn_r18_fpn", num_classes=wrong)


def test_published_figures_belong_to_settled_names_and_carry_a_hash():
    for name, published in PUBLISHED.items():
        assert settings_of(name).masks == (published.mask_ap is not None)
        assert len(published.sha256_prefix) == 8
        int(published.sha256_prefix, 16)
    for name, (_, mask_ap) in PAPER.items():
        assert settings_of(name).masks == (mask_ap is not None)
    assert PUBLISHED["mask_rcnn_r50_fpn_mdconv_c3-c5"].mask_ap == 37.1
