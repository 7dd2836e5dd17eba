from __future__ import annotations

import pytest
import torch

from torchdcn.bench import models
from torchdcn.bench.detectors import Contender
from torchdcn.bench.models import DetectorRun, bench_models, time_detectors
from torchdcn.bench.parts import Counts

SIZE = (64, 96)
FASTER, MASK = "faster_rcnn_r18_fpn_mdconv_c3-c5", "mask_rcnn_r18_fpn_mdconv_c3-c5"
HEADS = ["body", "pyramid", "RPN", "box head", "mask head"]


def run_both(name: str) -> dict[str, DetectorRun]:
    contenders = (Contender(name.split("_mdconv")[0], regular=True), Contender(name))
    return {one.name: DetectorRun(one, SIZE) for one in contenders}


@pytest.mark.parametrize(
    ("training", "parts", "counts"),
    [
        (False, [*HEADS, "pasting", "rest"], Counts(1000, 1000, 100, 100)),
        (True, [*HEADS, "rest"], Counts(1000, 512, 128, 0)),
    ],
    ids=["detection", "training"],
)
def test_contenders_have_the_same_to_do_and_their_parts_add_up(
    training: bool, parts: list[str], counts: Counts
) -> None:
    found = time_detectors(run_both(MASK), rounds=3, training=training)
    assert found.counts == counts
    for name, whole in found.times.items():
        assert list(found.parts[name]) == parts
        assert len(whole) == 3
        for i, seconds in enumerate(whole):
            *inner, rest = (times[i] for times in found.parts[name].values())
            assert all(part > 0 for part in inner)
            assert sum(inner) + rest == pytest.approx(seconds)
            assert rest > 0  # no part is counted twice
        # The rest is the picture's way to the network and the hooks' own time.
        assert found.part_seconds[name]["rest"] < 0.2 * found.seconds[name]


def test_a_network_without_masks_has_no_parts_for_them() -> None:
    found = time_detectors(run_both(FASTER), rounds=1, training=False)
    assert [list(parts) for parts in found.parts.values()] == [[*HEADS[:-1], "rest"]] * 2
    assert found.counts == Counts(1000, 1000, 0, 100)


def test_ratios_are_to_the_regular_network_of_the_same_part() -> None:
    found = time_detectors(run_both(FASTER), rounds=2, training=True)
    regular, deformable = (found.to_json(name) for name in found.times)
    assert regular["x_regular"] == 1
    for part, figures in deformable["parts"].items():
        assert figures["seconds"] == pytest.approx(sum(figures["seconds_by_round"]) / 2)
        if part != "rest":
            assert figures["x_regular"] == pytest.approx(figures["seconds"] / regular["parts"][part]["seconds"])
    assert deformable["counts"] == {"proposals": 1000, "boxes": 512, "masks": 0, "detections": 0}


def test_contenders_that_have_different_things_to_do_are_no_comparison() -> None:
    runs = run_both(FASTER)
    runs[FASTER].model.roi_heads.detections_per_img = 50
    with pytest.raises(RuntimeError, match=r"don't have the same to do.*detections=100.*detections=50"):
        time_detectors(runs, rounds=1, training=False)


def test_detection_gives_bool_masks_at_the_pictures_size() -> None:
    run = DetectorRun(Contender(MASK), SIZE)
    found: list[dict[str, torch.Tensor]] = []
    run.model.register_forward_hook(lambda _, __, output: found.extend(output))
    run.model.eval()
    run()
    assert (found[0]["masks"].shape, found[0]["masks"].dtype) == ((100, 1, *SIZE), torch.bool)


def test_a_training_step_gives_a_gradient_for_every_weight_that_trains() -> None:
    run = DetectorRun(Contender(MASK), SIZE)
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    seen: dict[str, bool] = {}
    for name, parameter in trained.items():
        parameter.register_hook(lambda gradient, name=name: seen.update({name: bool(gradient.isfinite().all())}))
    run()
    assert seen == dict.fromkeys(trained, True)
    assert all(parameter.grad is None for parameter in trained.values())  # as small as before the call


def test_every_group_is_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(models, "training_memory", lambda contender, *_: len(contender.name))
    before = torch.get_num_threads()
    names = [FASTER, "faster_rcnn_r18_fpn_mdpool", MASK]
    found = bench_models(names, size=SIZE, rounds=1, threads=1, progress=lambda *step: steps.append(step))
    assert torch.get_num_threads() == before
    for measured in (found.detection, found.training):
        assert [list(one.times) for one in measured] == [
            ["faster_rcnn_r18_fpn", FASTER, "faster_rcnn_r18_fpn_mdpool"],
            ["mask_rcnn_r18_fpn", MASK],
        ]
    assert {one.name: figure for one, figure in found.train_bytes.items()} == {
        name: len(name) for one in found.detection for name in one.times
    }
    assert steps == [(done, 9) for done in range(1, 10)]


def test_training_is_left_out_where_nobody_asks_for_it() -> None:
    steps: list[tuple[int, int]] = []
    found = bench_models([FASTER], size=SIZE, rounds=1, train=False, progress=lambda *step: steps.append(step))
    assert (found.training, found.train_bytes, steps) == ([], {}, [(1, 1)])
    assert [one["training_step"] for one in found.to_json()] == [None, None]


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        bench_models([FASTER], size=SIZE, rounds=0, train=False)
