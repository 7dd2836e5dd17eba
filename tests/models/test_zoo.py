from __future__ import annotations

import numpy as np
import pytest

from torchdcn.models import create_model, list_models
from torchdcn.models.zoo import PUBLISHED, settings_of


def test_lists_every_combination_of_heads_backbone_and_convolution():
    names = list_models()
    assert len(names) == len(set(names)) == 2 * 4 * 4 + 1
    for name in (
        "mask_rcnn_r18_fpn_mdconv_c3-c5",
        "faster_rcnn_r50_fpn",
        "faster_rcnn_r101_fpn_dconv_c3-c5",
        "mask_rcnn_x101-32x4d_fpn_mdconv_c3-c5_group4",
        "mask_rcnn_r50_fpn_fp16_mdconv_c3-c5",
    ):
        assert name in names


def test_names_that_need_roi_pooling_are_not_listed_and_say_what_they_lack():
    for name in (
        "faster_rcnn_r50_fpn_dpool",
        "mask_rcnn_r18_fpn_mdpool",
        "mask_rcnn_r50_fpn_mdconv_c3-c5_mdpool",
        "faster_rcnn_r50_dcnv2",
    ):
        assert name not in list_models()
        with pytest.raises(ValueError, match="deformable RoI pooling"):
            create_model(name)


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mask_rcnn_r50_fpn_mdconv_c3-c5'"):
        create_model("mask_rcnn_r50_fpn_mdconv_c3_c5")
    with pytest.raises(ValueError, match="no model ''"):
        create_model("")


def test_an_unknown_override_is_named_with_the_known_ones():
    with pytest.raises(TypeError, match=r"min_sise: .* 'min_size'.*max_size, .*rpn_nms_thresh"):
        create_model("faster_rcnn_r18_fpn", min_sise=100)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("min_size", 0),
        ("min_size", ()),
        ("min_size", (64, -1)),
        ("max_size", 2.5),
        ("norm", "layer"),
        ("conv", "deform"),
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


def test_lists_as_json_has_them_mean_the_same_as_tuples():
    settings = settings_of("faster_rcnn_r18_fpn", min_size=[64, 96], anchor_sizes=[8, 16, 32, 64, 128])
    assert settings == settings_of("faster_rcnn_r18_fpn", min_size=(64, 96))
    assert settings.sizes == (64, 96)


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
    waiting = {"faster_rcnn_r50_fpn_mdpool"}
    for name, published in PUBLISHED.items():
        if name in waiting:
            with pytest.raises(ValueError, match="needs deformable RoI pooling"):
                settings_of(name)
        else:
            assert settings_of(name).masks == (published.mask_ap is not None)
        assert len(published.sha256_prefix) == 8
        int(published.sha256_prefix, 16)
    assert waiting <= set(PUBLISHED)
    assert PUBLISHED["mask_rcnn_r50_fpn_mdconv_c3-c5"].mask_ap == 37.1
