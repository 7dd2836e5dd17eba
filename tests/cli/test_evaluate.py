import json
import shutil

import pytest

import torchdcn.evaluation.coco
from torchdcn.models import create_model
from torchdcn.models.weights import save_weights

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "mask_rcnn_r18_fpn"
SMALL = {"fpn_channels": 16, "box_head_channels": 16, "mask_head_channels": [8], "min_size": 64, "max_size": 64}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(create_model(MODEL, num_classes=6, **SMALL), path)
    return path


@pytest.fixture
def damaged(scenes, tmp_path):
    """Scenes of which the first picture of val can't be read."""
    root = tmp_path / "damaged"
    shutil.copytree(scenes, root)
    sorted((root / "val").iterdir())[0].write_bytes(b"no picture")
    return root


@pytest.fixture
def computed(monkeypatch):
    """The kinds of overlap that COCO's figures have been computed for."""
    kinds, compute = [], torchdcn.evaluation.coco._evaluate_one

    def counted(truth, results, kind):
        kinds.append(kind)
        return compute(truth, results, kind)

    monkeypatch.setattr(torchdcn.evaluation.coco, "_evaluate_one", counted)
    return kinds


def test_the_figures_are_computed_once(run, scenes, weights, tmp_path, computed):
    code, out, err = run("eval", "--data", scenes, "--model", MODEL, "--weights", weights, "--out", tmp_path / "eval")
    assert code == 0, err
    assert computed == ["bbox", "segm"]
    assert "By class, in percent" in out


def test_a_bad_image_ends_it_or_is_named_and_left_out_with_its_objects(run, damaged, weights, tmp_path):
    flags = ["eval", "--data", damaged, "--model", MODEL, "--weights", weights, "--out", tmp_path / "eval"]
    code, _, err = run(*flags)
    assert code == 1
    assert "can't be read as an image" in err
    code, out, err = run(*flags, "--skip-bad-images")
    assert code == 0, err
    assert out.count("skipped: ") == 1
    assert "The figures leave out 1 of 2 images, and what is annotated on them" in out
    content = json.loads((damaged / "annotations" / "instances_val.json").read_text())
    left = sum(entry["image_id"] == content["images"][1]["id"] for entry in content["annotations"])
    by_class = json.loads((tmp_path / "eval" / "per_class.json").read_text())
    assert sum(figures["objects"] for figures in by_class["bbox"].values()) == left


def test_a_training_run_leaves_them_out_too_tells_them_once_and_computes_once_each_time(
    run, damaged, tmp_path, computed
):
    pairs = {"data": damaged, "model": MODEL, "out": tmp_path / "run", "epochs": 2, "eval-every": 1, "workers": 0}
    flags = ["train", *(text for name, value in pairs.items() for text in (f"--{name}", value)), "--min-size", 64]
    for name, value in SMALL.items():
        flags += ["--set", f"{name}={json.dumps(value)}"] if not name.endswith("_size") else []
    code, _, err = run(*flags)
    assert code == 1
    assert "can't be read as an image" in err
    computed.clear()
    code, out, err = run(*flags, "--skip-bad-images")
    assert (code, err) == (0, "")
    assert out.count("skipped: ") == 1
    assert out.count("The figures leave out 1 of 2 images") == 2
    assert "no pictures for TensorBoard" not in out
    assert "By class, in percent" in out
    assert computed == ["bbox", "segm"] * 2


def test_the_example_leaves_the_runs_own_figures_alone(run):
    _, out, _ = run("eval", "--help")
    assert "--out runs/my/eval" in " ".join(out.split())
