import json

import pytest

from torchdcn.training import TrainConfig

NEEDED = {"data": "d", "model": "m", "out": "o"}


def test_saved_settings_come_back_equal(tmp_path):
    config = TrainConfig(**NEEDED, epochs=3, lr_drops=(0.5, 0.9), overrides={"fpn_channels": 64})
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("batch_size", 0), ("recipe", "2x"), ("lr", 0.0), ("lr", float("nan")), ("warmup", 0.2),
        ("lr_drops", (1.5,)), ("clip", -1.0), ("min_size", 4), ("flip", 1.1), ("amp", "fp8"), ("workers", -1),
        ("log_every", 0), ("checkpoint_every", 0), ("eval_every", -1), ("weight_decay", -0.1), ("offset_lr", 0.0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        TrainConfig(**NEEDED, **{name: value})


def test_a_setting_that_is_none_is_named_with_the_nearest(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**NEEDED, "batchsize": 4}))
    with pytest.raises(ValueError, match=r"'batchsize'.*'batch_size'"):
        TrainConfig.load(tmp_path / "config.json")


def test_a_broken_settings_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not a JSON file"):
        TrainConfig.load(tmp_path / "config.json")


def test_sizes_and_overrides_reach_the_model():
    config = TrainConfig(**NEEDED, min_size=64, overrides={"fpn_channels": 64})
    assert config.model_settings() == {"min_size": 64, "fpn_channels": 64}
