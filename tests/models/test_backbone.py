from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models.resnet import resnet18

from torchdcn.models.backbone import build_backbone, load_body
from torchdcn.models.zoo import settings_of
from torchdcn.nn import DeformConv2dPack, ModulatedDeformConv2dPack

if TYPE_CHECKING:
    from pathlib import Path


def packs(name: str, **overrides: object) -> dict[str, DeformConv2dPack]:
    with torch.device("meta"):
        backbone = build_backbone(settings_of(name, **overrides))
    return {name: module for name, module in backbone.named_modules() if isinstance(module, DeformConv2dPack)}


def test_every_3x3_of_c3_to_c5_deforms_in_bottlenecks():
    found = packs("mask_rcnn_r50_fpn_mdconv_c3-c5")
    assert len(found) == 4 + 6 + 3
    assert all(type(pack) is ModulatedDeformConv2dPack and pack.bias is None for pack in found.values())
    first = found["body.layer4.0.conv2"]
    assert first.stride == first.conv_offset.stride == (2, 2)
    assert found["body.layer4.1.conv2"].stride == (1, 1)
    assert len(packs("faster_rcnn_r101_fpn_mdconv_c3-c5")) == 4 + 23 + 3


def test_basic_blocks_have_one_deformable_layer_each():
    found = packs("mask_rcnn_r18_fpn_mdconv_c3-c5")
    assert list(found) == [f"body.layer{stage}.{block}.conv2" for stage in (2, 3, 4) for block in (0, 1)]


def test_names_and_settings_choose_kind_groups_and_stages():
    assert {type(p) for p in packs("faster_rcnn_r50_fpn_dconv_c3-c5").values()} == {DeformConv2dPack}
    assert {p.deform_groups for p in packs("faster_rcnn_r50_fpn_mdconv_c3-c5_group4").values()} == {4}
    assert len(packs("faster_rcnn_r50_fpn_dconv_c3-c5", deform_stages=("c5",))) == 3
    assert packs("faster_rcnn_r50_fpn") == {}
    assert {p.groups for p in packs("faster_rcnn_x101-32x4d_fpn_dconv_c3-c5").values()} == {32}


def test_the_papers_backbone_has_conv4_and_conv5_at_stride_16():
    settings = settings_of("faster_rcnn_r50_dcnv2", fpn_channels=16)
    backbone = build_backbone(settings)
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert {key: tuple(x.shape) for key, x in maps.items()} == {"conv4": (1, 1024, 4, 6), "conv5": (1, 16, 4, 6)}
    found = [block.conv2 for block in backbone.body.layer4]
    assert all(isinstance(conv, ModulatedDeformConv2dPack) and conv.stride == (1, 1) for conv in found)
    assert (
        [conv.dilation for conv in found] == [conv.conv_offset.dilation for conv in found] == [(1, 1), (2, 2), (2, 2)]
    )


def test_dilation_computes_what_the_regular_network_does_at_every_second_pixel():
    torch.manual_seed(0)
    dilated = build_backbone(settings_of("faster_rcnn_r50_dcnv2", conv=None, norm="bn_eval")).body
    regular = build_backbone(settings_of("faster_rcnn_r50_fpn", norm="bn_eval")).body
    regular.load_state_dict(dilated.state_dict())
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(dilated(images)["conv5"][..., ::2, ::2], regular(images)["3"], atol=1e-4, rtol=1e-4)


def test_gives_five_maps_finest_first_and_keeps_channels_last():
    backbone = build_backbone(settings_of("mask_rcnn_r18_fpn_mdconv_c3-c5", norm="gn"))
    images = torch.rand(2, 3, 64, 96)
    maps = backbone(images)
    assert [tuple(x.shape) for x in maps.values()] == [
        (2, 128, 16, 24), (2, 128, 8, 12), (2, 128, 4, 6), (2, 128, 2, 3), (2, 128, 1, 2)
    ]  # fmt: skip
    backbone = backbone.to(memory_format=torch.channels_last)
    for last, plain in zip(backbone(images).values(), maps.values(), strict=True):
        assert last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last, plain, atol=1e-4, rtol=1e-4)


def test_frozen_layers_have_no_gradient_and_keep_their_statistics():
    settings = settings_of("faster_rcnn_r18_fpn", norm="bn", trainable_backbone_layers=3)
    backbone = build_backbone(settings).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running_mean" in key}
    sum(x.sum() for x in backbone(torch.rand(2, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.body.named_parameters():
        assert (parameter.grad is None) == name.startswith(("conv1", "bn1", "layer1")), name
    for key, value in backbone.state_dict().items():
        if "running_mean" in key:
            changed = not torch.equal(value, before[key])
            assert changed == key.startswith(("body.layer2", "body.layer3", "body.layer4")), key


@pytest.mark.parametrize(("norm", "trained"), [("bn_eval", True), ("frozen_bn", False)])
def test_frozen_statistics_stay_so_in_training_mode(norm: str, trained: bool):
    backbone = build_backbone(settings_of("faster_rcnn_r18_fpn", norm=norm)).train()
    norms = [module for module in backbone.body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
    assert {module.weight.requires_grad for module in norms} == {trained}


def test_a_regular_networks_weights_give_its_features_at_the_start(tmp_path: Path):
    regular = resnet18().eval()
    for module in regular.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(regular.state_dict(), tmp_path / "resnet18.pth")
    images = torch.rand(1, 3, 64, 64)
    expected = nn.Sequential(*list(regular.children())[:-2])(images)
    for conv in ("mdconv", "dconv"):
        settings = settings_of("faster_rcnn_r18_fpn", conv=conv, norm="bn_eval")
        backbone = build_backbone(settings)
        load_body(backbone, settings, tmp_path / "resnet18.pth")
        torch.testing.assert_close(backbone.body(images)["3"], expected, atol=1e-4, rtol=1e-4)


def test_weights_of_another_network_do_not_fit(tmp_path: Path):
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    settings = settings_of("faster_rcnn_r50_fpn", norm="bn_eval")
    with pytest.raises(ValueError, match=r"weights_backbone: .*resnet18\.pth: does not fit"):
        load_body(build_backbone(settings), settings, tmp_path / "resnet18.pth")
    settings = settings_of("faster_rcnn_r18_fpn", norm="gn")
    with pytest.raises(ValueError, match="batch normalisation; give norm='bn_eval'"):
        load_body(build_backbone(settings), settings, tmp_path / "resnet18.pth")


def test_imagenet_weights_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    settings = settings_of("faster_rcnn_r18_fpn", norm="bn_eval")
    with pytest.raises(OSError, match=r"resnet18-\w+\.pth could not be fetched .*give the file's path"):
        load_body(build_backbone(settings), settings, "imagenet")
    with pytest.raises(ValueError, match="no ImageNet weights for x101-32x4d"):
        load_body(build_backbone(settings), replace(settings, backbone="x101-32x4d"), "imagenet")
