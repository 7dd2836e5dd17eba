import pytest
import torch
from torch import nn

from torchdcn.nn import ModulatedDeformConv2dPack
from torchdcn.training import TrainConfig, lr_factor, parameter_groups
from torchdcn.training.recipes import optimizer, schedule

CONFIG = TrainConfig("d", "m", "o", lr=1e-3, weight_decay=0.05, offset_lr=0.1, warmup=0.1, lr_drops=(0.75, 0.9))


def model():
    return nn.Sequential(ModulatedDeformConv2dPack(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))


def test_every_trainable_parameter_is_in_one_group():
    network = model()
    network[2].weight.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(network, CONFIG) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_offset_convolutions_learn_slower_and_only_weights_decay():
    network = model()
    lr = {id(p): group["lr"] for group in parameter_groups(network, CONFIG) for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in parameter_groups(network, CONFIG) for p in group["params"]}
    offset = network[0].conv_offset
    assert lr[id(offset.weight)] == lr[id(offset.bias)] == 1e-4
    assert lr[id(network[0].weight)] == lr[id(network[1].weight)] == 1e-3
    assert decay[id(offset.weight)] == decay[id(network[2].weight)] == 0.05
    assert decay[id(offset.bias)] == decay[id(network[1].weight)] == decay[id(network[2].bias)] == 0


def test_the_rate_rises_for_a_tenth_and_drops_at_its_shares_of_the_run():
    factors = [lr_factor(step, 200, CONFIG) for step in range(200)]
    assert factors[:20] == [(step + 1) / 20 for step in range(20)]
    assert set(factors[20:150]) == {1.0}
    assert all(abs(f - 0.1) < 1e-12 for f in factors[150:180])
    assert all(abs(f - 0.01) < 1e-12 for f in factors[180:])


def test_a_run_of_one_step_trains_at_some_rate():
    assert lr_factor(0, 1, CONFIG) > 0


def test_the_schedule_moves_all_groups_alike():
    optimiser = optimizer(model(), CONFIG)
    scheduler = schedule(optimiser, 200, CONFIG)
    for _ in range(160):
        optimiser.step()
        scheduler.step()
    rates = {round(group["lr"], 12) for group in optimiser.param_groups}
    assert rates == {1e-4, 1e-5}


def test_nothing_to_train_is_said():
    network = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        parameter_groups(network, CONFIG)


def test_a_step_leaves_frozen_parameters_alone():
    network = model()
    network[1].requires_grad_(False)
    before = network[1].weight.clone()
    optimiser = optimizer(network, CONFIG)
    network(torch.rand(1, 4, 8, 8)).sum().backward()
    optimiser.step()
    assert torch.equal(network[1].weight, before)
