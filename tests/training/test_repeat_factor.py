from collections import Counter
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from torchdcn.training import read_record, train
from torchdcn.training.batches import epoch_plan
from torchdcn.training.repeat_factor import draw_repeats, epoch_length, repeat_factors

LABELS = [[0]] * 9 + [[0, 1]]  # class 1 on a tenth of the images


def test_a_rare_class_asks_for_the_root_of_its_rarity():
    factors = repeat_factors(LABELS, threshold=0.4)
    assert factors == [1.0] * 9 + [2.0]
    assert repeat_factors(LABELS, threshold=0.1) == [1.0] * 10
    assert repeat_factors(LABELS, threshold=0.0) is None


def test_images_without_objects_are_seen_once():
    assert repeat_factors([[], [0], [0], [0]], threshold=0.75) == [1.0] * 4


@pytest.mark.parametrize("epoch", range(20))
def test_every_epoch_has_the_same_length_and_every_image(epoch):
    factors = repeat_factors([[i % 7] for i in range(30)] + [[8]], threshold=0.2)
    counts = Counter(draw_repeats(factors, torch.Generator().manual_seed(epoch)).tolist())
    assert sum(counts.values()) == epoch_length(31, factors) > 31
    assert set(counts) == set(range(31))
    assert all(int(factors[i]) <= count <= int(factors[i]) + 1 for i, count in counts.items())


def test_on_average_an_image_is_seen_as_often_as_its_factor():
    factors = repeat_factors([[0]] * 8 + [[1], [2]], threshold=0.25)
    draws = [draw_repeats(factors, torch.Generator().manual_seed(i)) for i in range(400)]
    counts = Counter(torch.cat(draws).tolist())
    assert all(abs(counts[i] / 400 - factor) < 0.1 for i, factor in enumerate(factors))


def test_a_plan_shows_rare_images_more_often_and_is_repeatable():
    factors = repeat_factors(LABELS, threshold=0.4)
    plan = epoch_plan(10, 4, seed=0, epoch=1, factors=factors)
    shown = Counter(index for batch in plan for index, _ in batch)
    assert shown == {**dict.fromkeys(range(9), 1), 9: 2}
    assert [len(batch) for batch in plan] == [4, 4, 3]
    assert plan == epoch_plan(10, 4, seed=0, epoch=1, factors=factors)


def test_a_run_is_as_long_as_its_repeats(config):
    plain, often = config, replace(config, out=f"{config.out}-often", repeat_factor_threshold=1.0)
    steps = []
    for each in (plain, often):
        train(each, console=Console(quiet=True))
        steps.append(read_record(f"{each.out}/metrics.jsonl")[-1]["step"])
    assert steps[0] == 3
    assert steps[1] > 3
