from __future__ import annotations

import pytest
import torch

from torchdcn.evaluation import models_memory
from torchdcn.evaluation.memory import can_measure
from torchdcn.evaluation.models_bench import (
    CANDIDATES,
    Contender,
    backbone_call,
    bench_models,
    build,
    detection_call,
    draw_image,
    groups_of,
    settle,
)
from torchdcn.evaluation.models_memory import training_memory
from torchdcn.models import list_models
from torchdcn.models.zoo import PUBLISHED
from torchdcn.nn import ModulatedDeformConv2dPack

SIZE = (64, 96)
MDCONV = "faster_rcnn_r18_fpn_mdconv_c3-c5"


def test_the_published_models_run_beside_their_regular_counterparts() -> None:
    assert [[(str(one), one.amp) for one in group] for group in groups_of(list(PUBLISHED))] == [
        [
            ("faster_rcnn_r50_fpn", "none"),
            ("faster_rcnn_r50_fpn_mdconv_c3-c5", "none"),
            ("faster_rcnn_r50_fpn_mdconv_c3-c5_group4", "none"),
            ("faster_rcnn_r50_fpn_mdpool", "none"),
        ],
        [("mask_rcnn_r50_fpn", "none"), ("mask_rcnn_r50_fpn_mdconv_c3-c5", "none")],
        [("mask_rcnn_r50_fpn", "bf16"), ("mask_rcnn_r50_fpn_fp16_mdconv_c3-c5", "bf16")],
    ]
    assert groups_of(["mask_rcnn_r50_fpn_fp16_mdconv_c3-c5"], "cuda")[0][1].amp == "fp16"


def test_every_model_has_a_regular_counterpart_that_leads_its_group() -> None:
    groups = groups_of(list_models())
    for plain, *others in groups:
        assert plain.settings.conv is None
        assert plain.settings.pool is None
        assert all(other.settings.conv or other.settings.pool for other in others)
    found = [one.name for group in groups for one in group if not one.plain]
    assert set(found) == set(list_models())


def test_a_wrong_name_is_named() -> None:
    with pytest.raises(ValueError, match=f"did you mean '{MDCONV}'"):
        groups_of([MDCONV + "x"])


def test_random_networks_get_offsets_of_two_pixels_and_the_published_recipes_frozen_layers() -> None:
    model = build(Contender("faster_rcnn_r50_fpn_mdconv_c3-c5"), SIZE)
    assert not model.backbone.body.conv1.weight.requires_grad
    assert not model.backbone.body.layer1[0].conv1.weight.requires_grad
    image = draw_image((160, 192))
    settle(model.backbone, image)
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    offsets = []
    for pack in model.backbone.modules():
        if isinstance(pack, ModulatedDeformConv2dPack):
            pack.register_forward_pre_hook(lambda pack, x: offsets.append(pack.predict(x[0])[0]))
    with torch.no_grad():
        maps = model.backbone(image)
    assert len(offsets) == 13
    assert all(1.5 < offset.std() < 2.5 for offset in offsets)
    assert all(0.01 < one.std() < 100 for name, one in maps.items() if name != "pool")


def test_detection_finds_as_much_in_every_model() -> None:
    found = detection_call(Contender("mask_rcnn_r18_fpn_mdconv_c3-c5"), SIZE)()
    assert 10 < len(found["boxes"]) <= min(CANDIDATES, 100)
    assert found["masks"].shape[1:] == (1, *SIZE)
    assert found["masks"].dtype == torch.bool


def test_a_training_step_gives_a_gradient_for_every_weight_that_trains() -> None:
    contender = Contender(MDCONV)
    gradients = backbone_call(contender, SIZE, training=True)()
    trained = [p for p in build(contender, SIZE).backbone.parameters() if p.requires_grad]
    assert [g.shape for g in gradients] == [p.shape for p in trained]
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert sum(float(g.abs().sum()) > 0 for g in gradients) > len(gradients) // 2


def test_speed_is_measured_for_every_model_and_backbone_in_turn() -> None:
    steps: list[tuple[int, int]] = []
    before = torch.get_num_threads()
    names = [MDCONV, "faster_rcnn_r18_fpn_mdpool", "mask_rcnn_r18_fpn_mdconv_c3-c5"]
    found = bench_models(names, size=SIZE, rounds=2, train=False, threads=1, progress=lambda *step: steps.append(step))
    assert torch.get_num_threads() == before
    assert [list(timed.times) for timed in found.detection] == [
        ["faster_rcnn_r18_fpn", MDCONV, "faster_rcnn_r18_fpn_mdpool"],
        ["mask_rcnn_r18_fpn", "mask_rcnn_r18_fpn_mdconv_c3-c5"],
    ]
    # One backbone of each kind, whatever heads are on it.
    assert [(timed.what, list(timed.times)) for timed in found.backbones] == [
        ("backbone forward", ["R18-FPN, regular", "R18-FPN, mdconv c3-c5"])
    ]
    assert found.detection[0].ratios["faster_rcnn_r18_fpn"] == 1
    assert all(len(times) == 2 for timed in found.detection for times in timed.times.values())
    assert found.train_bytes == {}
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
def test_training_memory_counts_weights_gradients_and_momentum() -> None:
    weights = sum(p.numel() for p in build(Contender("faster_rcnn_r18_fpn"), SIZE).parameters()) * 4
    found = training_memory(Contender("faster_rcnn_r18_fpn"), SIZE, batch=1)
    assert found is not None
    assert 2.9 * weights < found < 8 * weights


@pytest.mark.skipif(not can_measure(), reason="only Linux lets a process measure its own peak")
def test_a_process_that_fails_is_a_warning_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_memory, "__name__", "no_such_module")
    with pytest.warns(UserWarning, match="memory isn't measured.*no_such_module"):
        assert training_memory(Contender(MDCONV), SIZE) is None
