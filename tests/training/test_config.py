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
        ("log_every", 0), ("checkpoint_every", 0), ("eval_every", -1), ("weight_decay", -0.1),
        ("offset_lr_factor", 0.0), ("lr_batch", -1), ("warmup_steps", -1), ("multi_scale", (8,)),
        ("repeat_factor_threshold", 1.5),
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


def test_mimicking_reaches_the_model_and_is_off_by_default():
    assert TrainConfig(**NEEDED, mimic=True).model_settings() == {"mimic": True}
    assert TrainConfig(**NEEDED).model_settings() == {}


def test_a_recipe_fills_in_what_is_not_given():
    scratch, once, paper = (TrainConfig(**NEEDED, recipe=recipe) for recipe in ("scratch", "1x", "paper"))
    assert (scratch.epochs, scratch.lr, scratch.clip, scratch.min_size) == (12, 4e-4, 5.0, None)
    assert (once.epochs, once.lr, once.clip, once.min_size, once.max_size) == (12, 0.02, 0.0, 800, 1333)
    assert (paper.epochs, paper.min_size, paper.max_size, paper.offset_lr_factor) == (16, 1000, 1667, 0.1)
    assert {each.flip for each in (scratch, once, paper)} == {0.5}
    assert {each.repeat_factor_threshold for each in (scratch, once, paper)} == {0.0}
    assert TrainConfig(**NEEDED, recipe="1x", lr=0.01, epochs=24).lr == 0.01


def test_a_published_recipes_ratio_of_sides_is_kept():
    config = TrainConfig(**NEEDED, recipe="1x", min_size=480)
    assert (config.min_size, config.max_size) == (480, 800)
    assert TrainConfig(**NEEDED, recipe="1x", multi_scale=(640, 1400)).max_size == 1400


def test_settings_read_from_a_file_equal_those_that_were_saved(tmp_path):
    config = TrainConfig(**NEEDED, multi_scale=(64, 80), overrides={"mask_head_channels": (8, 8)})
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json").to_dict() == config.to_dict()


def test_a_warm_up_by_share_replaces_that_by_steps():
    assert TrainConfig(**NEEDED, recipe="1x", warmup=0.05).warmup_steps == 0


def test_several_scales_end_with_the_one_to_evaluate_with():
    config = TrainConfig(**NEEDED, recipe="1x", multi_scale=(640, 800, 720))
    assert config.model_settings()["min_size"] == (640, 720, 800)
    assert TrainConfig(**NEEDED, multi_scale=(96, 128, 64)).model_settings()["min_size"] == (96, 64, 128)


def test_settings_from_before_recipes_are_read():
    assert TrainConfig.from_dict({**NEEDED, "offset_lr": 0.5, "lr": 1e-3}).offset_lr_factor == 0.5


def test_another_recipe_takes_over_what_the_former_had_set():
    config = TrainConfig(**NEEDED, clip=1.0, seed=3).changed(recipe="paper", batch_size=4)
    assert config == TrainConfig(**NEEDED, recipe="paper", clip=1.0, seed=3, batch_size=4)


def test_values_of_the_wrong_type_are_refused_in_one_line(tmp_path):
    for content in ({**NEEDED, "epochs": "three"}, {"model": "m"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="not a run's settings"):
            TrainConfig.load(tmp_path / "config.json")


def test_all_settings_are_shown():
    shown = TrainConfig(**NEEDED, recipe="1x", overrides={"fpn_channels": 64}).describe()
    for part in ("recipe=1x", "lr=0.02", "lr_drops=0.6667,0.9167", "warmup_steps=500", "fpn_channels=64", "seed=0"):
        assert part in shown
