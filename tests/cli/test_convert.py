from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from torchdcn.interop import to_mmdet
from torchdcn.models import create_model
from torchdcn.models.weights import read_info, save_weights
from torchdcn.weights.read import read_state_dict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

VERB = ("convert",)
MODEL = "faster_rcnn_r18_fpn_mdconv_c3-c5"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=2, norm="bn_eval", min_size=64, anchor_sizes=(4, 8, 16, 32, 64))
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                torch.nn.init.normal_(value.reshape(-1))
    model.class_names, model.category_ids = ("cat", "dog"), (17, 18)
    return model


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_checkpoint_of_mmdetection_becomes_ours_and_itself_again(run: Run, model: Any, tmp_path: Path) -> None:
    theirs, ours, back = tmp_path / "epoch_12.pth", tmp_path / "new" / "ours.safetensors", tmp_path / "back.pth"
    state = to_mmdet(model)
    torch.save({"state_dict": state, "meta": {"CLASSES": ("cat", "dog"), "epoch": 12}}, theirs)
    code, said, complained = run(theirs, ours, "--model", MODEL)
    assert (code, complained) == (0, "")
    assert said.endswith(f"MB): {MODEL}, 2 classes (cat, dog)\n")
    info = read_info(ours)
    assert info is not None
    assert (info.model, info.num_classes, info.class_names) == (MODEL, 2, ("cat", "dog"))
    assert same(read_state_dict(ours), model.state_dict())
    assert run(ours, back, "--model", MODEL)[0] == 0
    content = torch.load(back, weights_only=True)
    assert content["meta"]["CLASSES"] == ("cat", "dog")
    assert same(content["state_dict"], state)


def test_settings_and_category_ids_survive_the_way_there_and_back(run: Run, model: Any, tmp_path: Path) -> None:
    ours, theirs, again = tmp_path / "ours.safetensors", tmp_path / "theirs.pth", tmp_path / "again.safetensors"
    save_weights(model, ours)
    assert run(ours, theirs, "--model", MODEL)[0] == 0
    assert run(theirs, again, "--model", MODEL)[0] == 0
    assert read_info(again) == read_info(ours)
    assert again.read_bytes() == ours.read_bytes()


def test_an_existing_file_is_replaced_only_when_told_to(run: Run, model: Any, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    save_weights(model, ours)
    theirs.write_text("precious")
    code, said, complained = run(ours, theirs, "--model", MODEL)
    assert (code, said, complained) == (1, "", f"error: OUT: {theirs} exists; give --force to replace it\n")
    assert theirs.read_text() == "precious"
    assert run(ours, theirs, "--model", MODEL, "--force")[0] == 0
    assert same(read_state_dict(theirs), to_mmdet(model))


@pytest.mark.parametrize(
    ("source", "out"), [("a.pth", "b.pth"), ("a.safetensors", "b.safetensors"), ("a.onnx", "b.pth"), ("a.pth", "b")]
)
def test_other_kinds_of_files_are_bad_usage(source: str, out: str, run: Run, tmp_path: Path) -> None:
    code, _, complained = run(tmp_path / source, tmp_path / out, "--model", MODEL)
    assert code == 2
    assert "expected IN.pth OUT.safetensors or IN.safetensors OUT.pth, got" in complained
    assert complained.count("\n") == 1


def test_bad_input_is_one_line_and_leaves_nothing(run: Run, model: Any, tmp_path: Path) -> None:
    out, broken, other = tmp_path / "out.safetensors", tmp_path / "broken.pth", tmp_path / "other.pth"
    broken.write_bytes(b"PK\3\4 broken")
    torch.save({"state_dict": to_mmdet(model) | {"neck.more.weight": torch.zeros(1)}}, other)
    for source, name, message in (
        (tmp_path / "none.pth", MODEL, "IN: there is no file '"),
        (broken, MODEL, "broken.pth: damaged"),
        (other, MODEL, "names that no model of ours has: neck.more.weight"),
        (other, "no_model", "--model: there is no model 'no_model'"),
    ):
        code, said, complained = run(source, out, "--model", name)
        assert (code, said) == (1, "")
        assert message in complained
        assert complained.count("\n") == 1
    save_weights(model, tmp_path / "fine.safetensors")
    code, _, complained = run(tmp_path / "fine.safetensors", tmp_path / "fine.pth", "--model", "mask_rcnn_r18_fpn")
    assert code == 1
    assert (
        f"error: IN: {tmp_path}/fine.safetensors holds a {MODEL}, not a mask_rcnn_r18_fpn; give that name" in complained
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pth", "fine.safetensors", "other.pth"]


def test_help_has_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "Example: torchdcn convert" in out
