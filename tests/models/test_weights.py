from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torchdcn.models import create_model
from torchdcn.models.weights import read_info, save_weights
from torchdcn.weights.read import read_state_dict

NAME = "mask_rcnn_r18_fpn_mdconv_c3-c5"


def small(name: str = NAME, **arguments: Any) -> Any:
    return create_model(name, **({"num_classes": 2, "min_size": 64} | arguments))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = small(anchor_sizes=(4, 8, 16, 32, 64))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.class_names, model.category_ids = ("cat", "dog"), (17, 18)
    path = tmp_path_factory.mktemp("weights") / "deep" / "pets.safetensors"
    save_weights(model.to(memory_format=torch.channels_last), path)
    return model, path


@pytest.mark.parametrize("sizes", [{"min_size": 400, "max_size": 512}, {"min_size": 400}, {"min_size": (96, 400)}])
def test_sizes_come_back_as_they_were(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = create_model("faster_rcnn_r18_fpn", num_classes=1, **sizes)
    save_weights(model, tmp_path / "small.safetensors")
    again = create_model("faster_rcnn_r18_fpn", weights=tmp_path / "small.safetensors")
    assert (again.settings.min_size, again.settings.max_size) == (model.settings.min_size, model.settings.max_size)


def test_a_file_knows_its_model_settings_and_classes(saved: Any):
    info = read_info(saved[1])
    assert info.model == NAME
    assert info.num_classes == 2
    assert info.class_names == ("cat", "dog")
    assert info.category_ids == (17, 18)
    assert info.settings["min_size"] == 64
    assert info.settings["norm"] == "gn"
    assert "max_size" not in info.settings


def test_a_model_comes_back_as_it_was(saved: Any):
    model, path = saved
    again = create_model(NAME, weights=path)
    assert again.settings == model.settings
    assert (again.num_classes, again.class_names, again.category_ids) == (2, ("cat", "dog"), (17, 18))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert list(path.parent.iterdir()) == [path]  # no temporary file left


def test_what_is_given_wins_over_what_the_file_says(saved: Any):
    model = create_model(NAME, weights=saved[1], min_size=96, trainable_backbone_layers=2)
    assert model.settings.min_size == 96
    assert not model.backbone.body.layer2[0].conv1.weight.requires_grad


def test_another_number_of_classes_keeps_everything_but_the_class_layers(saved: Any):
    with pytest.warns(
        UserWarning, match=r"num_classes: .*pets\.safetensors has 2 classes; the layers for 5 start anew"
    ):
        model = create_model(NAME, weights=saved[1], num_classes=5)
    assert model.roi_heads.box_predictor.cls_score.bias.shape == (6,)
    assert model.class_names is None
    assert torch.equal(model.roi_heads.box_head.fc6.weight, saved[0].roi_heads.box_head.fc6.weight)


def test_weights_of_another_model_do_not_fit(saved: Any):
    with pytest.raises(ValueError, match=rf"weights: .* holds a {NAME}, not a faster_rcnn_r18_fpn; give that"):
        create_model("faster_rcnn_r18_fpn", weights=saved[1])


def test_broken_missing_and_foreign_files_are_one_clear_line(tmp_path: Path, saved: Any):
    with pytest.raises(FileNotFoundError, match="weights: there is no file"):
        create_model(NAME, weights=tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved[1].read_bytes()[:5000])
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not a checkpoint")
    pickled = tmp_path / "pickled.pth"
    torch.save({"state_dict": {"a": Path()}}, pickled)
    numbers = tmp_path / "numbers.pth"
    torch.save({"epoch": 3}, numbers)
    for path in (broken, garbage, pickled, numbers):
        with pytest.raises(ValueError, match=rf"{path.name}: ") as error:
            create_model(NAME, weights=path)
        assert "\n" not in str(error.value)


def test_files_of_another_kind_than_their_name_says_are_refused_in_our_own_words(tmp_path: Path, saved: Any):
    renamed, text, junk = (tmp_path / name for name in ("renamed.pth", "text.json", "junk.safetensors"))
    renamed.write_bytes(saved[1].read_bytes())
    text.write_text('{"images": []}')
    junk.write_bytes(b"junk")
    pickled, damaged = tmp_path / "pickled.pth", tmp_path / "damaged.pth"
    torch.save({"meta": Path()}, pickled)
    damaged.write_bytes(b"\x80\x02junk")
    torch.save({"a": torch.zeros(1)}, tmp_path / "torch.safetensors")
    for path, message in (
        (renamed, "safetensors file under another name"),
        (text, "not a weights file of torch or safetensors"),
        (junk, "not a weights file of safetensors"),
        (pickled, "expected a dict of tensors, got an object that is not read under 'meta'"),
        (damaged, "damaged, or not a weights file of torch"),
        (tmp_path / "torch.safetensors", r"should end in \.pth"),
    ):
        with pytest.raises(ValueError, match=rf"{path.name}: .*{message}") as error:
            create_model(NAME, weights=path)
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["cat"]}, "class_names: expected 2 entries of type str or none at all, got 1"),
        ({"class_names": "ab"}, "class_names: .* got 'ab'"),
        ({"class_names": ["cat", 3]}, "class_names: .* got 3 among them"),
        ({"category_ids": [1, 2, 3]}, "category_ids: expected 2 entries of type int or none at all, got 3"),
        ({"category_ids": [1, "2"]}, "category_ids: .* got '2' among them"),
        ({"settings": [1]}, r"settings: expected a mapping, got \[1\]"),
        ({"num_classes": 2.5}, "num_classes: expected a positive int, got 2.5"),
        ({"num_classes": 3, "class_names": None, "category_ids": None}, "has 3 classes, but its layers are for 2"),
        ({"model": 7}, "model: expected a name, got 7"),
        ({"more": 7}, "more"),
    ],
)
def test_metadata_is_not_taken_on_trust(change: dict[str, Any], message: str, saved: Any, tmp_path: Path):
    entries = asdict(read_info(saved[1])) | change
    path = tmp_path / "odd.safetensors"
    save_file(read_state_dict(saved[1]), path, metadata={"torchdcn": json.dumps(entries)})
    with pytest.raises(ValueError, match=rf"odd\.safetensors.*{message}"):
        create_model(NAME, weights=path)


def test_class_names_that_could_not_be_read_again_are_not_written(tmp_path: Path):
    model = small("faster_rcnn_r18_fpn")
    model.class_names = ("cat",)
    with pytest.raises(ValueError, match="class_names: expected 2 entries"):
        save_weights(model, tmp_path / "model.safetensors")


def test_weights_of_a_backbone_that_cannot_be_used_name_their_argument(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"^weights_backbone: there is no file 'nope'"):
        create_model("faster_rcnn_r18_fpn", weights_backbone="nope")
    monkeypatch.setattr("torchdcn.models.backbone._imagenet", lambda _: pytest.fail("downloads"))
    with pytest.raises(ValueError, match=r"weights_backbone: imagenet .* batch normalisation"):
        create_model("faster_rcnn_r18_fpn", weights_backbone="imagenet", norm="gn")


def test_plain_state_dicts_tell_their_classes_and_norm(tmp_path: Path):
    model = small("faster_rcnn_r18_fpn", norm="bn", num_classes=4)
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "plain.pth")
    again = create_model("faster_rcnn_r18_fpn", weights=tmp_path / "plain.pth")
    assert again.num_classes == 4
    assert again.settings.norm == "bn_eval"
    assert again.settings.trainable_backbone_layers == 3


def test_only_safetensors_are_written_and_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = small("faster_rcnn_r18_fpn")
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.safetensors"):
        save_weights(model, tmp_path / "model.pth")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchdcn.weights.torchdcn_file.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_bad_numbers_of_classes_say_what_is_expected():
    with pytest.raises(ValueError, match="num_classes: expected a positive int, got 0"):
        create_model(NAME, num_classes=0)


@pytest.mark.parametrize("name", ["conv2_offset.", "conv2.conv_offset_mask."])
def test_other_projects_names_of_the_offsets_layer_are_read(name: str, tmp_path: Path):
    model = small()
    other_names = {k.replace("conv2.conv_offset.", name): torch.randn_like(v) for k, v in model.state_dict().items()}
    torch.save(other_names, tmp_path / "other.pth")
    body = {k.removeprefix("backbone.body."): v for k, v in other_names.items() if k.startswith("backbone.body.")}
    torch.save(body, tmp_path / "body.pth")
    again = create_model(NAME, weights=tmp_path / "other.pth")
    theirs = other_names[f"backbone.body.layer4.0.{name}weight"]
    assert torch.equal(again.backbone.body.layer4[0].conv2.conv_offset.weight, theirs)
    again = small(weights_backbone=tmp_path / "body.pth", norm="gn")
    assert torch.equal(again.backbone.body.layer4[0].conv2.conv_offset.weight, theirs)
    weight = other_names["backbone.body.layer4.0.conv2.weight"]
    assert torch.equal(again.backbone.body.layer4[0].conv2.weight, weight)  # not doubled: the file has offsets
    torch.save(other_names | {k: v for k, v in model.state_dict().items() if "layer2.0" in k}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"^weights: .*two\.pth: .* are two names of one layer"):
        create_model(NAME, weights=tmp_path / "two.pth")
