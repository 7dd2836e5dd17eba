"""What predicts offsets starts at zero, however a network is initialised; and goes back there in one call."""

import copy
import itertools
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.models import resnet18

from torchdcn.nn import (
    DeformConv2d,
    DeformConv2dPack,
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformConv2dPack,
    ModulatedDeformRoIPoolPack,
    deformable,
    offset_parameters,
    zero_offsets,
)

BOXES = torch.tensor([[0, 1.0, 2.0, 30.0, 20.0], [1, -3.0, 5.0, 9.0, 9.5]])
NAMES = ["v1", "v2", "pool v1", "pool v2", "pool of one trunk"]


def every_pack() -> nn.ModuleDict:
    packs = [
        DeformConv2dPack(4, 4, 3), ModulatedDeformConv2dPack(4, 4, 3, deform_groups=2), DeformRoIPoolPack(3, 4, 8),
        ModulatedDeformRoIPoolPack(3, 4, 8), ModulatedDeformRoIPoolPack(3, 4, 8, single_trunk=True),
    ]  # fmt: skip
    return nn.ModuleDict(dict(zip(NAMES, packs, strict=True)))


def moved(network: nn.ModuleDict) -> list[str]:
    """The packs whose samples are not at their start: an offset that isn't 0, or a mask that isn't 0.5."""
    found = []
    for name, pack in network.items():
        assert isinstance(pack, (DeformConv2dPack, DeformRoIPoolPack))
        offset, mask = pack.predict(torch.rand(2, 4, 9, 9) if name in NAMES[:2] else torch.rand(2, 4, 3, 3))
        if offset.any() or (mask is not None and not torch.all(mask == 0.5)):
            found.append(name)
    return found


def parents_first(network: nn.Module) -> list[nn.Module]:
    return list(network.modules())


def children_first(network: nn.Module) -> list[nn.Module]:
    order: list[nn.Module] = []
    network.apply(order.append)
    return order


@pytest.mark.parametrize("order", [parents_first, children_first])
@pytest.mark.parametrize("meta", [False, True])
def test_no_order_of_resets_moves_a_sample(order: Callable[[nn.Module], list[nn.Module]], meta: bool) -> None:
    with torch.device("meta" if meta else "cpu"):
        network = every_pack()
    modules = order(network)
    if not meta:
        for parameter in network.parameters():
            nn.init.ones_(parameter)
    for module in modules:
        if any(True for _ in module.parameters(recurse=False)):
            if meta:
                module.to_empty(device="cpu", recurse=False)
                for parameter in module.parameters(recurse=False):
                    nn.init.constant_(parameter, float("nan"))
            module.reset_parameters()
    assert moved(network) == []
    weights = [p for n, p in network.named_parameters() if n.endswith("weight") and p.any()]
    assert all(weight.std() > 0 for weight in weights)  # the rest is drawn
    assert len(weights) == 2 + 2 + (2 + 1) + 2


def test_resetting_whatever_can_be_reset_in_any_order_of_a_pack_and_its_children() -> None:
    for pack in (ModulatedDeformConv2dPack(4, 4, 3), ModulatedDeformRoIPoolPack(3, 4, 8)):
        resettable = [module for module in pack.modules() if hasattr(module, "reset_parameters")]
        for order in itertools.permutations(resettable):
            for parameter in pack.parameters():
                nn.init.ones_(parameter)
            for module in order:
                module.reset_parameters()
            assert moved(nn.ModuleDict({NAMES[1 if isinstance(pack, DeformConv2dPack) else 3]: pack})) == []


@pytest.mark.parametrize("pack", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_resetting_a_pack_leaves_its_children_as_they_are(pack: type[DeformConv2dPack]) -> None:
    layer = pack(4, 4, 3)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    layer.reset_parameters()
    assert layer.weight.std() > 0
    assert layer.bias is not None
    assert layer.bias.std() > 0
    assert all(torch.all(parameter == 1) for parameter in offset_parameters(layer))


def test_hidden_layers_of_a_pooling_pack_are_drawn_each_in_its_own_way() -> None:
    torch.manual_seed(0)
    paper = ModulatedDeformRoIPoolPack(3, 4, 64, single_trunk=True)
    for layer in paper.modules():
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.weight)
            layer.reset_parameters()
    assert [0.008 < float(paper.offset_mask_fc[i].weight.detach().std()) < 0.012 for i in (0, 2)] == [True, True]
    assert not any(p.any() for p in paper.offset_mask_fc[4].parameters())


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="needs gloo")
@pytest.mark.filterwarnings("ignore")  # FSDP warns that it wants a GPU
@pytest.mark.usefixtures("one_process")
def test_fully_sharded_training_from_the_meta_device_moves_no_sample() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with torch.device("meta"):
        network = every_pack()
    wrapped = FullyShardedDataParallel(network, device_id=torch.device("cpu"), use_orig_params=True)
    with FullyShardedDataParallel.summon_full_params(wrapped):
        assert moved(wrapped.module) == []


def test_a_network_without_memory_is_copied_without_memory_and_filled_later() -> None:
    with torch.device("meta"):
        network = every_pack()
    again = copy.deepcopy(network)
    assert all(parameter.is_meta for parameter in again.parameters())
    again.to_empty(device="cpu")
    for module in parents_first(again):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert moved(again) == []


def test_a_seed_gives_the_weights_of_a_plain_convolution_in_the_packs_place() -> None:
    torch.manual_seed(0)
    pack, after = ModulatedDeformConv2dPack(4, 4, 3), nn.Conv2d(4, 4, 3)
    torch.manual_seed(0)
    plain, _, other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 27, 3), nn.Conv2d(4, 4, 3)
    assert torch.equal(pack.weight, plain.weight)
    assert torch.equal(after.weight, other.weight)


def test_what_predicts_is_printed_and_counts_as_an_ordinary_layer() -> None:
    conv, pool = ModulatedDeformConv2dPack(4, 4, 3).conv_offset, ModulatedDeformRoIPoolPack(3, 4, 8, single_trunk=True)
    assert isinstance(conv, nn.Conv2d)
    assert repr(conv) == "Conv2d(4, 27, kernel_size=(3, 3), stride=(1, 1))"
    names = [repr(layer).partition("(")[0] for layer in pool.offset_mask_fc]
    assert names == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_packs_are_pickled_with_their_start() -> None:
    network: nn.ModuleDict = pickle.loads(pickle.dumps(every_pack()))  # noqa: S301
    for module in parents_first(network):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert moved(network) == []


# The loop over all convolutions, and its repair


def kaiming_loop(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias)


def test_after_an_initialising_loop_one_call_puts_every_pack_back() -> None:
    network = every_pack()
    kaiming_loop(network)
    assert moved(network) == NAMES
    hidden = network["pool v1"].offset_fc[0].weight.clone()
    assert zero_offsets(network) is network
    assert moved(network) == []
    assert torch.equal(network["pool v1"].offset_fc[0].weight, hidden)
    input = torch.rand(2, 4, 30, 30)
    assert torch.equal(network["pool v1"](input, BOXES), DeformRoIPool(3)(input, BOXES))


def test_a_deformable_network_computes_after_the_loop_and_the_call_what_the_regular_one_does() -> None:
    torch.manual_seed(0)
    regular = resnet18().eval()
    kaiming_loop(regular)
    network = deformable(copy.deepcopy(regular))
    kaiming_loop(network.layer2[0].conv1)
    zero_offsets(network)
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network(image), regular(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["frozen", "bfloat16", "meta", "old pickle", "one pack", "none"])
def test_zeroing_takes_networks_as_they_come(kind: str) -> None:
    with torch.device("meta" if kind == "meta" else "cpu"):
        network: nn.Module = nn.Sequential(ModulatedDeformConv2dPack(4, 4, 3), DeformRoIPoolPack(3, 4, 8))
    if kind == "old pickle":  # from when these were ordinary layers
        network[0].conv_offset, network[1].offset_fc[4] = nn.Conv2d(4, 27, 3), nn.Linear(8, 18)
    elif kind == "one pack":
        network = ModulatedDeformConv2dPack(4, 4, 3)
    elif kind == "none":
        network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(4, 4), DeformConv2d(4, 4, 3))
    network.to(torch.bfloat16 if kind == "bfloat16" else torch.float32).requires_grad_(kind != "frozen")
    kaiming_loop(network)
    before = [parameter.clone() for parameter in network.parameters()]
    zero_offsets(network)
    zero = [name for name, p in network.named_parameters() if not p.is_meta and not p.any()]
    usual = ["0.conv_offset.weight", "0.conv_offset.bias", "1.offset_fc.4.weight", "1.offset_fc.4.bias"]
    special: dict[str, list[str]] = {"meta": [], "none": [], "one pack": ["conv_offset.weight", "conv_offset.bias"]}
    assert zero == special.get(kind, usual)
    for (name, parameter), former in zip(network.named_parameters(), before, strict=True):
        assert name in zero or parameter.is_meta or torch.equal(parameter, former)


@pytest.mark.parametrize("how", ["weight norm", "pruned", "replaced"])
def test_what_can_not_be_zeroed_is_named_and_nothing_is_changed(how: str) -> None:
    network = nn.Sequential(ModulatedDeformConv2dPack(4, 4, 3), ModulatedDeformConv2dPack(4, 4, 3))
    kaiming_loop(network)
    last: Any = network[1].conv_offset
    if how == "weight norm":
        parametrizations.weight_norm(last)
    elif how == "pruned":
        prune.l1_unstructured(last, "weight", 0.5)
    else:
        network[1].conv_offset = nn.Sequential(nn.Conv2d(4, 27, 3))
    with pytest.raises(ValueError, match=r"^model: 1\.conv_offset predicts offsets, but is a \w+ without a weight or "):
        zero_offsets(network)
    assert isinstance(network[0].conv_offset, nn.Conv2d)
    assert network[0].conv_offset.weight.any()


def test_zeroing_something_else_than_a_network_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^model: expected an nn\.Module, got OrderedDict$"):
        zero_offsets(every_pack().state_dict())


def test_zeroing_keeps_what_an_optimiser_holds() -> None:
    pack = ModulatedDeformConv2dPack(4, 4, 3)
    optimiser = torch.optim.SGD(offset_parameters(pack), lr=1.0)
    nn.init.ones_(pack.conv_offset.weight)
    zero_offsets(pack)
    pack(torch.rand(1, 4, 9, 9)).square().sum().backward()
    before: Tensor = pack.conv_offset.weight.clone()
    optimiser.step()
    assert not torch.equal(pack.conv_offset.weight, before)
