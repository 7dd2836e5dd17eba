import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "box_batch_size_per_image": 32,
    "rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20,
}  # fmt: skip
SET = [flag for name, value in SMALL.items() for flag in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture
def flags(scenes, tmp_path):
    model = "mask_rcnn_r18_fpn_mdconv_c3-c5"
    pairs = {"data": scenes, "model": model, "out": tmp_path / "run", "epochs": 1, "min-size": 64, "workers": 0}
    return ["train", *(text for name, value in pairs.items() for text in (f"--{name}", value)), *SET]


def test_a_published_recipe_runs_tells_its_settings_and_is_repeated_by_its_config(run, flags, tmp_path):
    code, out, err = run(*flags, "--recipe", "1x", "--multi-scale", "48,64")
    assert code == 0, err
    assert "recipe: 1x expects pretrained weights (--weights-backbone imagenet" in err
    assert "recipe=1x" in out
    assert "Highest learning rate: 0.0025 for 2 images a step, 2 steps in all" in out
    saved = tmp_path / "run" / "config.json"
    assert json.loads(saved.read_text())["multi_scale"] == [48, 64]
    code, _, err = run("train", "--config", saved, "--out", tmp_path / "again")
    assert code == 0, err
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    code, out, err = run("train", "--config", saved, "--resume", "--epochs", 2)
    assert code == 0, err
    assert "from step 2" in out
    assert json.loads(saved.read_text())["epochs"] == 2


def test_an_evaluation_leaves_pictures_and_the_end_figures_by_class(run, flags, tmp_path):
    code, out, err = run(*flags, "--config", _saved(tmp_path))
    assert (code, err) == (0, "")
    assert "By class, in percent" in out
    assert "starfish" in out
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert set(events.Tags()["images"]) == {"val/detections", "val/offsets"}


def _saved(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": "nowhere", "model": "faster_rcnn_r18_fpn", "out": "nowhere", "epochs": 50}))
    return path


def test_a_config_that_is_none_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for path, message in ((tmp_path / "config.json", "not a JSON file"), (tmp_path / "none.json", "none.json")):
        code, _, err = run("train", "--config", path)
        assert code == 1
        assert message in err
        assert err.count("\n") == 1


def test_a_check_of_sound_data_ends_well(run, scenes):
    code, out, err = run("train", "--data", scenes, "--check")
    assert (code, err) == (0, "")
    assert "4 images" in out
    assert "0 faults" in out


def test_a_check_reports_all_faults_and_trains_nothing(run, flags, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "train" / "000002.jpg").write_bytes(b"\xff\xd8broken")
    (data / "val" / "000001.jpg").unlink()
    code, out, _ = run(*flags, "--data", data, "--check")
    assert code == 1
    assert "fault: " in out
    assert "000002.jpg: can't be read" in out
    assert "000001.jpg: there is no such image file" in out
    assert "2 faults" in out
    assert not (tmp_path / "run").exists()


def test_a_check_needs_data_alone(run):
    code, _, err = run("train", "--check")
    assert code == 2
    assert "--data" in err


def test_a_yolo_folder_is_trained_on_and_evaluated(run, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = as_yolo(scenes, tmp_path / "yolo")
    model = ["--data", data, "--model", "faster_rcnn_r18_fpn"]
    small = [flag for name in ("fpn_channels", "box_head_channels") for flag in ("--set", f"{name}=16")]
    code, out, err = run("train", *model, "--out", tmp_path / "run", "--epochs", 1, "--min-size", 64, *small)
    assert (code, err) == (0, "")
    assert "6 classes) on 4 images" in out
    weights = tmp_path / "run" / "last.safetensors"
    code, out, err = run("eval", *model, "--weights", weights, "--out", tmp_path / "eval")
    assert (code, err) == (0, "")
    per_class = json.loads((tmp_path / "eval" / "per_class.json").read_text())["bbox"]
    truth = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    assert sum(figures["objects"] for figures in per_class.values()) == len(truth["annotations"])


def as_yolo(coco, root):
    for split in ("train", "val"):
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        numbers = {category["id"]: number for number, category in enumerate(content["categories"])}
        shutil.copytree(coco / split, root / "images" / split)
        (root / "labels" / split).mkdir(parents=True)
        for image in content["images"]:
            lines = []
            for entry in content["annotations"]:
                if entry["image_id"] == image["id"]:
                    x, y, w, h = (value / 64 for value in entry["bbox"])
                    lines.append(f"{numbers[entry['category_id']]} {x + w / 2} {y + h / 2} {w} {h}\n")
            (root / "labels" / split / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
    names = [category["name"] for category in content["categories"]]
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
    return root
