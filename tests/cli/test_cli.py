import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchdcn.cli import main
from torchdcn.cli.detect import output_names
from torchdcn.models import create_model, list_models
from torchdcn.models.weights import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "mask_rcnn_r18_fpn"
SMALL = {"fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "box_batch_size_per_image": 32}
SET = [flag for name, value in SMALL.items() for flag in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    model = create_model(MODEL, num_classes=6, min_size=64, **SMALL)
    model.class_names = ("fish", "ladder", "ring", "snake", "spider", "starfish")
    model.category_ids = (1, 2, 3, 4, 5, 6)
    save_weights(model, path)
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "scene7.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return path


def train_flags(scenes, out, **flags):
    flags = {"data": scenes, "model": MODEL, "out": out, "epochs": 1, "min-size": 64, "workers": 0, **flags}
    return ["train", *(text for name, value in flags.items() for text in (f"--{name}", value))]


def test_every_verb_has_help_with_an_example(run):
    for verb in ("models", "train", "eval", "detect", "demo"):
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert f"Example: torchdcn {verb}" in " ".join(out.split())


def test_models_lists_all_with_parameters_and_published_figures(run):
    code, out, _ = run("models")
    assert code == 0
    assert all(re.search(rf"^ *{re.escape(name)} ", out, re.MULTILINE) for name in list_models())
    row = next(line for line in out.splitlines() if " mask_rcnn_r50_fpn_mdconv_c3-c5 " in line)
    assert row.split() == ["mask_rcnn_r50_fpn_mdconv_c3-c5", "13", "mdconv", "in", "c3-c5", "45.3", "M", "41.5", "37.1"]
    for name, layers in (("faster_rcnn_r50_fpn_mdpool", "mdpool"), ("faster_rcnn_r50_fpn_dpool", "dpool")):
        row = next(line for line in out.splitlines() if f" {name} " in line)
        assert row.split()[1] == layers
    assert "AP: as published by mmdetection, and of the names with dcnv2 by the paper" in out


def test_train_then_eval_then_detect(run, scenes, tmp_path):
    code, out, err = run(*train_flags(scenes, tmp_path / "run"), *SET)
    assert (code, err) == (0, "")
    assert "AP50" in out
    trained = tmp_path / "run" / "last.safetensors"
    code, out, _ = run("eval", "--data", scenes, "--model", MODEL, "--weights", trained, "--out", tmp_path / "eval")
    assert code == 0
    assert "AP50" in out
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) == {"bbox", "segm"}
    assert "By class" in out
    by_class = json.loads((tmp_path / "eval" / "per_class.json").read_text())
    assert set(by_class) == set(metrics)
    assert set(next(iter(by_class["segm"].values()))) == {"AP", "AP50", "AR100", "objects"}
    with Image.open(tmp_path / "eval" / "precision_recall.png") as drawn:
        assert drawn.width == 1620


def test_detect_draws_and_writes_coco_results(run, weights, picture, tmp_path):
    flags = ["--model", MODEL, "--weights", weights, "--score-threshold", 0]
    code, _, err = run("detect", picture, *flags, "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "out" / "scene7.png") as drawn:
        assert drawn.size[0] % 64 == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= results[0].keys()
    assert {result["image_id"] for result in results} == {7}
    assert {result["category_id"] for result in results} <= set(range(1, 7))


def test_detect_without_weights_warns_once(run, picture):
    code, _, err = run("detect", picture, "--model", MODEL, "--min-size", 64)
    assert code == 0
    assert err.count("random weights") == 1
    assert err.startswith("warning: ")


def test_detect_takes_a_folder(run, weights, picture):
    shutil.copy(picture, picture.with_name("other.png"))
    picture.with_name("._scene7.png").write_bytes(b"macOS notes")
    picture.with_name("folder.png").mkdir()
    code, out, _ = run("detect", picture.parent, "--model", MODEL, "--weights", weights)
    assert code == 0
    assert out.count("object") == 2


# --- Bad input: one line that names the fault, the right exit code, and nothing left behind. ------------------------


def fails(outcome, code, pattern):
    got, _, err = outcome
    assert got == code
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert re.search(pattern, err), err


@pytest.mark.parametrize(
    ("flags", "code", "pattern"),
    [
        ({"data": "/nowhere"}, 1, "/nowhere: there is no such folder"),
        ({"model": "mask_rcnn_r18_fnp"}, 1, "did you mean 'mask_rcnn_r18_fpn'"),
        ({"weights": "/no/such.safetensors"}, 1, "/no/such.safetensors"),
        ({"device": "tpu9"}, 1, "--device: expected cpu, cuda or cuda:N, got 'tpu9'"),
        ({"set": "fpn_chanels=3"}, 1, "did you mean 'fpn_channels'"),
        ({"epochs": 0}, 2, "--epochs: expected at least 1, got 0"),
        ({"batch-size": 0}, 2, "--batch-size: expected at least 1"),
        ({"epochs": "many"}, 2, "--epochs"),
        ({"recipe": "2x"}, 2, "--recipe: expected 'scratch' or '1x' or 'paper', got '2x'"),
        ({"lr-drops": "a,b"}, 2, "--lr-drops: expected shares"),
        ({"set": "fpn_channels"}, 2, "--set: expected NAME=VALUE"),
        ({"epoch": 3}, 2, "No such option: --epoch"),
    ],
)
def test_train_refuses(run, scenes, tmp_path, flags, code, pattern):
    outcome = run(*train_flags(scenes, tmp_path / "run", **flags))
    fails(outcome, code, pattern)
    assert not (tmp_path / "run").exists()


def test_a_missing_flag_is_bad_usage(run):
    fails(run("train", "--data", "x"), 2, "--model.*torchdcn train --help")
    fails(run("tran"), 2, "tran")


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lambda file: file.unlink(), "there is no such annotation file"),
        (lambda file: file.write_text("{"), "instances_train.json"),
        (lambda file: file.write_text('{"images": []}'), "instances_train.json.*annotations"),
    ],
    ids=["missing", "not JSON", "without annotations"],
)
def test_a_broken_annotation_file_is_named(run, scenes, tmp_path, damage, pattern):
    data = shutil.copytree(scenes, tmp_path / "data")
    damage(data / "annotations" / "instances_train.json")
    fails(run(*train_flags(data, tmp_path / "run")), 1, pattern)
    assert not (tmp_path / "run").exists()


def without_masks(content):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def with_another_id(content):
    content["categories"][0]["id"] = 70
    for annotation in content["annotations"]:
        annotation["category_id"] = 70 if annotation["category_id"] == 1 else annotation["category_id"]


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (without_masks, r"instances_val\.json: .*annotation 1 has no \"segmentation\""),
        (with_another_id, r"instances_val\.json: the class 'fish' \(id 70\) is there with the id 1 in the training"),
        (lambda content: content["categories"][0].update(name="eel"), r"the class 'eel' \(id 1\) is not there"),
    ],
    ids=["masks", "ids", "names"],
)
def test_a_val_that_does_not_fit_is_refused_before_training(run, scenes, tmp_path, damage, pattern):
    data = shutil.copytree(scenes, tmp_path / "data")
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    fails(run(*train_flags(data, tmp_path / "run"), *SET), 1, pattern)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_training_image_is_named(run, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "train" / "000002.jpg").write_bytes(b"\xff\xd8broken")
    outcome = run(*train_flags(data, tmp_path / "run"), *SET)
    fails(outcome, 1, r"000002\.jpg")
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_refused(run, scenes, tmp_path):
    (tmp_path / "run").write_text("mine")
    fails(run(*train_flags(scenes, tmp_path / "run"), *SET), 1, "^error: --out: ")
    fails(run(*train_flags(scenes, tmp_path / "run" / "deeper"), *SET), 1, "^error: --out: ")
    assert (tmp_path / "run").read_text() == "mine"


def test_detect_with_an_unreadable_picture_leaves_nothing(run, weights, picture, tmp_path):
    broken = picture.with_name("z-broken.png")
    broken.write_bytes(b"not a picture")
    flags = ["--model", MODEL, "--weights", weights, "--out", tmp_path / "out", "--json", tmp_path / "r.json"]
    fails(run("detect", picture, broken, *flags), 1, "z-broken.png")
    fails(run("detect", picture, tmp_path / "none.png", *flags), 1, "none.png")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "r.json").exists()


def test_detect_names_all_unreadable_pictures_or_goes_on_without_them(run, weights, picture, tmp_path):
    broken = [picture.with_name(f"broken{i}.png") for i in range(1, 6)]
    for path in broken:
        path.write_bytes(b"not a picture")
    out, file = tmp_path / "out", tmp_path / "r.json"
    flags = ["--model", MODEL, "--weights", weights, "--score-threshold", 0, "--out", out, "--json", file]
    fails(run("detect", picture.parent, *flags), 1, "5 of 6 pictures can't be read: .*broken1.*broken3.*; and 2 more")
    assert not out.exists()
    outcome = run("detect", picture.parent, *flags, "--keep-going")
    fails(outcome, 1, "5 of 6 pictures can't be read")
    assert "broken5.png: left out" in outcome[1]
    assert [path.name for path in out.iterdir()] == ["scene7.png"]
    assert {result["image_id"] for result in json.loads(file.read_text())} == {7}  # as if all had been read
    fails(run("detect", *broken, *flags, "-k"), 1, "5 of 5 pictures")


def test_detect_and_eval_take_mixed_precision(run, weights, picture, scenes, tmp_path):
    flags = ["--model", MODEL, "--weights", weights]
    code, _, err = run(
        "detect", picture, *flags, "--score-threshold", 0, "--json", tmp_path / "a.json", "--amp", "bf16"
    )
    assert (code, err) == (0, "")
    run("detect", picture, *flags, "--score-threshold", 0, "--json", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() != (tmp_path / "b.json").read_text()
    assert run("eval", "--data", scenes, *flags, "--amp", "bf16")[0] == 0
    fails(run("eval", "--data", scenes, *flags, "--amp", "bf17"), 2, "--amp: expected one of none, bf16, fp16")


def test_weights_that_do_not_fit_are_refused(run, weights, picture, scenes):
    other = "mask_rcnn_r18_fpn_mdconv_c3-c5"
    fails(run("detect", picture, "--model", other, "--weights", weights), 1, "small.safetensors")
    text = picture.with_name("text.safetensors")
    text.write_text("text")
    fails(run("eval", "--data", scenes, "--model", MODEL, "--weights", text), 1, "text.safetensors")


def test_detect_never_overwrites_a_picture_it_was_given(run, weights, picture):
    before = picture.read_bytes()
    flags = ["--model", MODEL, "--weights", weights]
    fails(run("detect", picture, *flags, "--out", picture.parent), 1, "--out: would overwrite .*scene7.png; choose")
    fails(run("detect", picture, *flags, "--json", picture), 1, "--json: would overwrite .*scene7.png; choose")
    shutil.copy(picture, picture.with_suffix(".bmp"))
    outcome = run("detect", picture.with_suffix(".bmp"), *flags, "--out", picture.parent)
    fails(outcome, 1, "--out: would overwrite .*scene7.png; choose")
    assert picture.read_bytes() == before


def test_detect_refuses_a_json_that_is_a_folder_before_it_detects(run, weights, picture, tmp_path):
    outcome = run("detect", picture, "--model", MODEL, "--weights", weights, "--json", tmp_path)
    fails(outcome, 1, f"--json: {tmp_path} is a folder, expected a file")
    assert outcome[1] == ""
    (tmp_path / "file").write_text("")
    outcome = run("detect", picture, "--model", MODEL, "--weights", weights, "--json", tmp_path / "file" / "r.json")
    fails(outcome, 1, "--json: .*file is a file, expected a folder")


def test_pictures_of_one_name_get_files_of_their_own():
    names = output_names([Path(name) for name in ("a.jpg", "b/a.jpg", "b/a-2.jpg", "c/A.png")])
    assert names[:2] == ["a.png", "a-2.png"]
    assert len({name.casefold() for name in names}) == 4


def test_verbose_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main([str(a) for a in train_flags("/nowhere", tmp_path / "run")] + ["--verbose"])


def test_the_module_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "torchdcn", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.fullmatch(r"torchdcn \d+\.\d+\.\d+\n", done.stdout)
