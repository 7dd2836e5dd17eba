from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torchdcn.interop import convert_mmdet, load_mmdet, to_mmdet
from torchdcn.models import create_model, list_models

SHARED = Path(__file__).parents[2].parent / "shared"
NAME = "mask_rcnn_r18_fpn_mdconv_c3-c5"
KEYS = {
    "faster-rcnn_r50_fpn_1x_coco": "faster_rcnn_r50_fpn",
    "faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_dconv_c3-c5",
    "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3-c5",
    "faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco": "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
    "faster-rcnn_r50_fpn_dpool_1x_coco": "faster_rcnn_r50_fpn_dpool",
    "faster-rcnn_r50_fpn_mdpool_1x_coco": "faster_rcnn_r50_fpn_mdpool",
    "faster-rcnn_r101-dconv-c3-c5_fpn_1x_coco": "faster_rcnn_r101_fpn_dconv_c3-c5",
    "faster-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco": "faster_rcnn_x101-32x4d_fpn_dconv_c3-c5",
    "mask-rcnn_r50_fpn_1x_coco": "mask_rcnn_r50_fpn",
    "mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_dconv_c3-c5",
    "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": "mask_rcnn_r50_fpn_mdconv_c3-c5",
    "mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco": "mask_rcnn_r101_fpn_dconv_c3-c5",
}


def small(**arguments: Any) -> Any:
    return create_model(NAME, **({"num_classes": 2, "norm": "bn_eval"} | arguments))


def other_numbers(model: Any) -> Any:
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                torch.nn.init.normal_(value.reshape(-1), std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    return other_numbers(small())


@pytest.fixture(scope="module")
def theirs(model: Any) -> dict[str, Tensor]:
    return to_mmdet(model)


def their_keys(config: str) -> list[tuple[str, list[int], str]]:
    """Name, shape and dtype of all that mmdetection saves."""
    file = SHARED / "vectors" / "keys" / f"{config}.keys.json"
    if not file.is_file():
        pytest.skip(f"mmdetection's names are not here: {file}")
    keys: list[tuple[str, list[int], str]] = json.loads(file.read_text())
    return keys


@pytest.mark.parametrize("config", KEYS)
def test_names_and_shapes_are_exactly_those_of_mmdetection(config: str) -> None:
    with torch.device("meta"):
        state = to_mmdet(create_model(KEYS[config]))
    expected = {key: (shape, dtype) for key, shape, dtype in their_keys(config)}
    assert {key: (list(value.shape), str(value.dtype)) for key, value in state.items()} == expected


@pytest.mark.parametrize("config", KEYS)
def test_their_weights_fill_our_model_parameter_by_parameter(config: str) -> None:
    keys = their_keys(config)
    theirs = convert_mmdet({key: torch.empty(shape, device="meta") for key, shape, _ in keys})
    with torch.device("meta"):
        model = create_model(KEYS[config])
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in model.state_dict().items()}
    fixed = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(math.prod(shape) for key, shape, _ in keys if not key.endswith(fixed))
    assert sum(p.numel() for p in model.parameters()) == count


def test_there_and_back_is_bitwise_the_same(model: Any, theirs: dict[str, Tensor]) -> None:
    other = small()
    assert load_mmdet(other, theirs) is other
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    again = to_mmdet(other)
    assert list(again) == list(theirs)
    assert all(torch.equal(again[key], value) for key, value in theirs.items())


def test_the_background_is_their_last_and_our_first_class(model: Any, theirs: dict[str, Tensor]) -> None:
    ours = model.roi_heads.box_predictor.cls_score
    for leaf in ("weight", "bias"):
        assert torch.equal(theirs[f"roi_head.bbox_head.fc_cls.{leaf}"], getattr(ours, leaf)[[1, 2, 0]])


def test_counters_are_written_as_zero() -> None:
    model = small(norm="bn")
    model.backbone.body.bn1.num_batches_tracked.fill_(7)
    state = to_mmdet(model)
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(counters) == 20
    assert all(state[key].dtype == torch.int64 and state[key] == 0 for key in counters)
    assert model.backbone.body.bn1.num_batches_tracked == 7


def test_what_is_written_can_be_saved_and_knows_no_gradients(theirs: dict[str, Tensor]) -> None:
    assert all(value.is_contiguous() and not value.requires_grad for value in theirs.values())
    state = to_mmdet(small().to(memory_format=torch.channels_last))
    assert all(value.is_contiguous() for value in state.values())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_in_a_file_brings_its_class_names(
    zipped: bool, model: Any, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "epoch_12.pth"
    state = {f"module.{key}": value for key, value in theirs.items()}
    content = {"state_dict": state, "meta": {"CLASSES": ("cat", "dog")}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_mmdet(small(), str(path))
    assert loaded.class_names == ("cat", "dog")
    assert loaded.category_ids is None
    created = create_model(NAME, weights=path)
    assert created.class_names == ("cat", "dog")
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
        assert torch.equal(created.state_dict()[key], value), key


def test_cocos_names_bring_its_category_ids_also_as_old_files_write_them(tmp_path: Path) -> None:
    from torchdcn.detections import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

    model = small(num_classes=80)
    names = tuple(name.replace(" ", "_") for name in COCO_CLASS_NAMES)
    torch.save({"state_dict": to_mmdet(model), "meta": {"CLASSES": names}}, tmp_path / "old.pth")
    load_mmdet(model, tmp_path / "old.pth")
    assert (model.class_names, model.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)


def test_old_names_of_offset_layers_are_read(model: Any, theirs: dict[str, Tensor]) -> None:
    old = {key.replace("conv2.conv_offset.", "conv2_offset."): value for key, value in theirs.items()}
    assert sum("conv2_offset." in key for key in old) == 12
    other = load_mmdet(small(), old)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_tensor_under_its_old_and_its_new_name_is_an_error_that_names_both(theirs: dict[str, Tensor]) -> None:
    key = "backbone.layer2.0.conv2.conv_offset.weight"
    old = {"backbone.layer2.0.conv2_offset.weight": torch.zeros_like(theirs[key])}
    message = r'"{}" and "{}" are two names of one tensor: keep one'
    names = [key, next(iter(old))]
    with pytest.raises(ValueError, match="^path_or_state_dict: the state dict: " + message.format(*names)):
        load_mmdet(small(), theirs | old)
    with pytest.raises(ValueError, match="^state_dict: " + message.format(*names)):
        convert_mmdet(theirs | old)


def test_files_without_counters_are_complete(theirs: dict[str, Tensor]) -> None:
    load_mmdet(small(), {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")})


def test_missing_unknown_and_misshapen_tensors_are_listed_by_mmdetections_names(theirs: dict[str, Tensor]) -> None:
    state = dict(theirs)
    del state["rpn_head.rpn_cls.bias"], state["backbone.layer2.0.conv2.conv_offset.weight"]
    state["backbone.layer9.bias"] = state["neck.fc.weight"] = torch.zeros(1)
    state["roi_head.bbox_head.fc_reg.bias"] = torch.zeros(12)
    target = small()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_mmdet(target, state)
    assert str(error.value) == (
        f"path_or_state_dict: the state dict does not fit {NAME}; "
        "missing: backbone.layer2.0.conv2.conv_offset.weight, rpn_head.rpn_cls.bias; "
        "unknown: backbone.layer9.bias, neck.fc.weight; "
        "of another shape: roi_head.bbox_head.fc_reg.bias [12] instead of [8]"
    )
    assert all(torch.equal(target.state_dict()[key], value) for key, value in before.items())


def test_what_is_no_state_dict_says_what_is_expected(model: Any, theirs: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match=r"^path_or_state_dict: expected a path or a dict of tensors, got int"):
        load_mmdet(model, 3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"got dict under 'state_dict'; give its entry 'state_dict'$"):
        load_mmdet(model, {"state_dict": theirs})
    with pytest.raises(FileNotFoundError, match=r"^path_or_state_dict: there is no file 'none\.pth'"):
        load_mmdet(model, "none.pth")


def test_group_norm_has_mmdetections_names() -> None:
    model = other_numbers(small(norm="gn"))
    state = to_mmdet(model)
    assert "backbone.gn1.weight" in state
    assert "backbone.layer2.0.gn2.bias" in state
    assert not any(".bn" in key for key in state)
    other = load_mmdet(small(norm="gn"), state)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"missing: backbone.bn1.weight.* unknown: backbone.gn1.weight, "):
        load_mmdet(small(norm="bn"), state)


def test_the_layer_of_feature_mimicking_stays_here() -> None:
    plain, mimicking = small(), small(mimic=True)
    state = to_mmdet(mimicking)
    assert state.keys() == to_mmdet(plain).keys()
    before = mimicking.mimic.cls_score.weight.clone()
    load_mmdet(mimicking, to_mmdet(plain))
    assert torch.equal(mimicking.mimic.cls_score.weight, before)


@pytest.mark.parametrize("name", ["faster_rcnn_r50_dcnv2", "mask_rcnn_r50_dcnv2"])
def test_the_papers_own_detector_has_no_counterpart(name: str) -> None:
    if name not in list_models():
        pytest.skip(f"{name} is not there yet")
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(
        ValueError, match=f"^model: {name} has no counterpart there: mmdetection has no names for "
    ) as error:
        to_mmdet(model)
    assert "\n" not in str(error.value)


def test_other_networks_have_no_counterpart() -> None:
    with pytest.raises(
        ValueError, match=r"^model: Linear has no counterpart there: mmdetection has no names for weight, bias"
    ):
        to_mmdet(torch.nn.Linear(2, 2))


def test_packs_of_roi_pooling_are_in_the_map() -> None:
    theirs = [
        f"roi_head.{kind}_roi_extractor.roi_layers.3.{fc}.weight"
        for kind in ("bbox", "mask")
        for fc in ("offset_fc.4", "mask_fc.2")
    ]
    ours = [
        f"roi_heads.{kind}_roi_pool.layers.3.{fc}.weight"
        for kind in ("box", "mask")
        for fc in ("offset_fc.4", "mask_fc.2")
    ]
    assert list(convert_mmdet(dict.fromkeys(theirs, torch.zeros(1)))) == ours


def test_weights_filled_by_mmdetections_names_fill_a_whole_detector(tmp_path: Path) -> None:
    config = "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"
    folder = SHARED / "vectors"
    if not folder.is_dir():
        pytest.skip(f"mmdetection's names are not here: {folder}")
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    keys = json.loads((folder / "keys" / f"{config}.keys.json").read_text())
    state = {key: torch.from_numpy(fill.fill_array(key, shape)) for key, shape, _ in keys}
    torch.save({"state_dict": state}, tmp_path / "filled.pth", _use_new_zipfile_serialization=False)
    model = load_mmdet(create_model(KEYS[config]), tmp_path / "filled.pth")
    again = to_mmdet(model)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
