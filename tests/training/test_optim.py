import itertools

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from torchdcn.models import create_model
from torchdcn.nn import ModulatedDeformConv2dPack
from torchdcn.training import TrainConfig, lr_factor, parameter_groups
from torchdcn.training.optim import base_lr, build_optimizer, build_schedule

CONFIG = TrainConfig("d", "m", "o", lr=1e-3, weight_decay=0.05, offset_lr_factor=0.1, warmup=0.1, lr_drops=(0.75, 0.9))


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
    optimiser = build_optimizer(model(), CONFIG)
    scheduler = build_schedule(optimiser, 200, CONFIG)
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
    optimiser = build_optimizer(network, CONFIG)
    network(torch.rand(1, 4, 8, 8)).sum().backward()
    optimiser.step()
    assert torch.equal(network[1].weight, before)


def published(recipe, **more):
    return TrainConfig("d", "m", "o", recipe=recipe, **more)


@pytest.mark.parametrize(("recipe", "epochs", "drops"), [("1x", 12, (8, 11)), ("paper", 16, (10, 14))])
def test_published_rates_drop_after_their_epochs(recipe, epochs, drops):
    config = published(recipe)
    for a_epoch in (7330, 641):
        steps = a_epoch * epochs
        assert config.epochs == epochs
        factors = [lr_factor(step, steps, config) for step in range(500, steps)]
        changes = [step + 500 for step, (a, b) in enumerate(itertools.pairwise(factors), 1) if a != b]
        assert changes == [drop * a_epoch for drop in drops]
        assert factors[0] == 1.0
        assert factors[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("recipe", ["1x", "paper"])
def test_published_rates_rise_in_500_steps_from_a_thousandth(recipe):
    factors = [lr_factor(step, 90_000, published(recipe)) for step in (0, 250, 500)]
    assert factors == [pytest.approx(0.001), pytest.approx(0.5005), 1.0]


@pytest.mark.parametrize(("recipe", "factor"), [("1x", 1.0), ("paper", 0.1)])
def test_published_recipes_are_sgd_for_16_images(recipe, factor):
    network = model()
    optimiser = build_optimizer(network, published(recipe, batch_size=2), 8)
    assert type(optimiser) is torch.optim.SGD
    slow = {id(p) for p in network[0].conv_offset.parameters()}
    for group in optimiser.param_groups:
        assert group["momentum"] == 0.9
        assert group["weight_decay"] == 1e-4
        offsets = {id(p) for p in group["params"]} <= slow
        assert group["lr"] == pytest.approx(0.02 * 8 / 16 * (factor if offsets else 1))


def test_the_offsets_rate_of_a_published_recipe_can_be_chosen():
    rates = {group["lr"] for group in parameter_groups(model(), published("1x", offset_lr_factor=0.1), 16)}
    assert sorted(rates) == [pytest.approx(0.002), pytest.approx(0.02)]


def test_the_rate_of_scratch_does_not_follow_the_batch():
    assert base_lr(CONFIG, 2) == base_lr(CONFIG, 64) == CONFIG.lr
    assert base_lr(published("1x"), 64) == 0.08
    assert base_lr(published("1x", lr_batch=0), 64) == 0.02


@pytest.mark.parametrize("recipe", ["1x", "paper"])
def test_a_step_of_a_published_recipe_moves_everything_that_trains(recipe):
    network = model()
    before = [p.clone() for p in network.parameters()]
    optimiser = build_optimizer(network, published(recipe))
    network(torch.rand(1, 4, 8, 8)).square().sum().backward()
    optimiser.step()
    moved = [not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True)]
    assert all(moved)


@pytest.mark.parametrize(("recipe", "scales"), [("1x", True), ("paper", False)])
def test_published_recipes_freeze_what_is_pretrained(recipe, scales, tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save(resnet18(weights=None).state_dict(), file)
    config = TrainConfig("d", "faster_rcnn_r18_fpn", "o", recipe=recipe, weights_backbone=str(file))
    network = create_model(config.model, weights_backbone=file, num_classes=2, **config.model_settings())
    body = network.train().backbone.body
    assert not any(p.requires_grad for part in (body.conv1, body.bn1, body.layer1) for p in part.parameters())
    assert body.layer2[0].conv1.weight.requires_grad
    norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert body.layer2[0].bn1.weight.requires_grad == scales


def test_a_published_recipe_without_weights_is_from_scratch():
    config = TrainConfig("d", "faster_rcnn_r18_fpn", "o", recipe="paper", min_size=64)
    network = create_model(config.model, num_classes=2, **config.model_settings())
    assert all(p.requires_grad for p in network.parameters())
