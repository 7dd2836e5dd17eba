"""rename_offset_keys translates the names that other libraries gave the layer of the offsets."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn

from torchdcn.nn import DeformConv2dPack, ModulatedDeformConv2dPack, deformable, rename_offset_keys

LEAVES = ("weight", "bias")


class Block(nn.Module):
    """A block of a ResNet, as far as names go."""

    def __init__(self, pack: type[DeformConv2dPack] = ModulatedDeformConv2dPack, deform_groups: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 1)
        self.conv2 = pack(8, 6, (3, 2), stride=(2, 1), padding=1, deform_groups=deform_groups)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.conv2(self.conv1(input))
        return output


def renamed(state: dict[str, Tensor], name: str) -> OrderedDict[str, Tensor]:
    """Fresh values for a state dict of ours, under another name of the offsets' layer."""
    return OrderedDict((k.replace("conv2.conv_offset", name), torch.randn_like(v)) for k, v in state.items())


def by_hand(state: dict[str, Tensor], predictor: str, input: Tensor) -> Tensor:
    """A modulated block as CharlesShang's DCN computes it: three chunks, the first two joined, the third a sigmoid."""
    x = nn.functional.conv2d(input, state["0.conv1.weight"], state["0.conv1.bias"])
    prediction = nn.functional.conv2d(x, state[f"{predictor}.weight"], state[f"{predictor}.bias"], (2, 1), 1)
    first, second, mask = torch.chunk(prediction, 3, dim=1)
    offset = torch.cat((first, second), dim=1)
    # torchvision's operator stands for DCN's kernel: group by group, tap by tap, dy and dx side by side.
    return torchvision.ops.deform_conv2d(
        x, offset, state["0.conv2.weight"], state["0.conv2.bias"], (2, 1), 1, mask=mask.sigmoid()
    )


@pytest.mark.parametrize("name", ["conv2.conv_offset", "conv2.conv_offset_mask", "conv2_offset"])
def test_a_modulated_pack_computes_what_its_source_did(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Block())
    state = renamed(net.state_dict(), name)
    given = OrderedDict(state)
    assert str(net.load_state_dict(rename_offset_keys(net, state))) == "<All keys matched successfully>"
    input = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(net(input), by_hand(state, f"0.{name}", input), rtol=1e-4, atol=1e-4)
    assert list(state) == list(given)
    assert all(state[key] is given[key] for key in given)


def test_mask_and_offset_channels_keep_dcns_order_in_every_group() -> None:
    """DCN's kernel reads (dy, dx) of tap t in group g at 2 (g K + t), and its mask at g K + t of the last third."""
    pack = ModulatedDeformConv2dPack(2, 1, (1, 2), deform_groups=2, bias=False)
    shift = torch.tensor([0, 1, 1, 0, 0, -1, 2, 0.0])  # group 0: tap 0 one right, tap 1 one down; group 1: ...
    logits = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    state = {
        "weight": torch.tensor([[[[1.0, 10.0]], [[100.0, 1000.0]]]]),
        "conv_offset_mask.weight": torch.zeros(12, 2, 1, 2),
        "conv_offset_mask.bias": torch.cat([shift, logits]),
    }
    pack.load_state_dict(rename_offset_keys(pack, state))
    a, b = torch.rand(2, 6, 6)
    output = pack(torch.stack([a, b])[None])[0, 0]
    m = logits.sigmoid()
    expected = 1 * m[0] * a[2, 3] + 10 * m[1] * a[3, 3] + 100 * m[2] * b[2, 1] + 1000 * m[3] * b[4, 3]
    torch.testing.assert_close(output[2, 2], expected, rtol=1e-5, atol=1e-4)


def test_a_v1_pack_reads_the_name_beside_it() -> None:
    net = nn.Sequential(Block(DeformConv2dPack))
    state = renamed(net.state_dict(), "conv2_offset")
    net.load_state_dict(rename_offset_keys(net, state))
    pack = net[0].conv2
    assert torch.equal(pack.conv_offset.weight, state["0.conv2_offset.weight"])
    assert torch.equal(pack.conv_offset.bias, state["0.conv2_offset.bias"])


@pytest.mark.parametrize(
    "holder",
    [
        lambda pack: nn.Sequential(OrderedDict(conv2=pack)),
        lambda pack: nn.ModuleDict({"conv2": pack}),
        lambda pack: nn.Sequential(OrderedDict(conv1=nn.ReLU(), conv2=pack)),
    ],
    ids=["Sequential", "ModuleDict", "beside another"],
)
def test_the_name_beside_is_read_whatever_holds_the_pack(holder) -> None:  # type: ignore[no-untyped-def]
    net = holder(ModulatedDeformConv2dPack(4, 4, 3))
    state = renamed(net.state_dict(), "conv2_offset")
    net.load_state_dict(rename_offset_keys(net, state))
    assert torch.equal(net.conv2.conv_offset.weight, state["conv2_offset.weight"])


def test_a_pack_in_a_list_is_read_by_its_number() -> None:
    net = nn.ModuleList([ModulatedDeformConv2dPack(4, 4, 3), ModulatedDeformConv2dPack(4, 4, 3)])
    state = {k.replace(".conv_offset", "_offset"): torch.randn_like(v) for k, v in net.state_dict().items()}
    net.load_state_dict(rename_offset_keys(net, state))
    assert torch.equal(net[1].conv_offset.bias, state["1_offset.bias"])


def test_a_resnet_after_surgery_reads_old_mmdetections_and_detectron2s_names() -> None:
    net = deformable(torchvision.models.resnet18(), where="layer4.*.conv2")
    state = {
        k.replace(".conv2.conv_offset.", ".conv2_offset."): torch.randn_like(v) if "offset" in k else v
        for k, v in net.state_dict().items()
    }
    assert "layer4.1.conv2_offset.weight" in state
    net.load_state_dict(rename_offset_keys(net, state))
    assert torch.equal(net.layer4[1].conv2.conv_offset.weight, state["layer4.1.conv2_offset.weight"])


def test_copies_and_unpickled_networks_read_the_names_too() -> None:
    net = nn.Sequential(Block())
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    state = renamed(net.state_dict(), "conv2_offset")
    twin = copy.deepcopy(net)
    del net
    for other in (twin, torch.load(file, weights_only=False)):
        other.load_state_dict(rename_offset_keys(other, state))
        assert torch.equal(other[0].conv2.conv_offset.weight, state["0.conv2_offset.weight"])


@pytest.mark.parametrize("name", ["conv2.conv_offset_mask", "conv2_offset"])
@pytest.mark.parametrize("leaf", LEAVES)
def test_two_names_for_one_layer_are_an_error_that_names_both(name: str, leaf: str) -> None:
    net = nn.Sequential(Block())
    state = renamed(net.state_dict(), "conv2.conv_offset")
    state[f"0.{name}.{leaf}"] = torch.zeros_like(state[f"0.conv2.conv_offset.{leaf}"])
    with pytest.raises(ValueError, match=r"^state_dict: .* are two names of one layer") as caught:
        rename_offset_keys(net, state)
    assert f'"0.{name}.{leaf}"' in str(caught.value)
    assert '"0.conv2.conv_offset.' in str(caught.value)


def test_one_leaf_under_each_name_is_an_error_too() -> None:
    net = nn.Sequential(Block())
    state = renamed(net.state_dict(), "conv2.conv_offset")
    state["0.conv2_offset.bias"] = state.pop("0.conv2.conv_offset.bias")
    with pytest.raises(ValueError, match=r"conv2_offset\.bias.*conv2\.conv_offset\.weight.*two names of one layer"):
        rename_offset_keys(net, state)


def test_two_foreign_names_for_one_layer_are_an_error_too() -> None:
    net = nn.Sequential(Block())
    state = renamed(net.state_dict(), "conv2_offset")
    state["0.conv2.conv_offset_mask.bias"] = state.pop("0.conv2_offset.bias")
    with pytest.raises(ValueError, match=r"conv2_offset\.weight.*conv_offset_mask\.bias.*two names of one layer"):
        rename_offset_keys(net, state)


@pytest.mark.parametrize(
    "key",
    ["0.conv2.conv_offset_mask.scale", "0.conv2_offset.scale", "0.conv1_offset.weight", "0.conv2.mask.weight", "extra"],
)
def test_torch_reports_every_other_key_under_its_own_name(key: str) -> None:
    net = nn.Sequential(Block())
    state = renamed(net.state_dict(), "conv2_offset")
    state[key] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key}"'):
        net.load_state_dict(rename_offset_keys(net, state))
    assert net.load_state_dict(rename_offset_keys(net, state), strict=False).unexpected_keys == [key]


def test_a_missing_bias_is_reported_by_our_name() -> None:
    net = nn.Sequential(Block())
    state = renamed(net.state_dict(), "conv2_offset")
    del state["0.conv2_offset.bias"]
    assert net.load_state_dict(rename_offset_keys(net, state), strict=False).missing_keys == [
        "0.conv2.conv_offset.bias"
    ]


def test_a_v1_pack_does_not_take_a_modulated_layers_weights() -> None:
    v1, v2 = nn.Sequential(Block(DeformConv2dPack)), nn.Sequential(Block())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0.conv2.conv_offset_mask.weight"'):
        v1.load_state_dict(rename_offset_keys(v1, renamed(v2.state_dict(), "conv2.conv_offset_mask")))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.conv2.conv_offset.weight"):
        v1.load_state_dict(rename_offset_keys(v1, renamed(v2.state_dict(), "conv2_offset")))


def test_a_module_of_that_name_that_a_network_really_has_keeps_its_weights() -> None:
    net = Block()
    net.conv2_offset = nn.Conv2d(8, 3, 1)
    state = {k: torch.randn_like(v) for k, v in net.state_dict().items()}
    net.load_state_dict(rename_offset_keys(net, state))
    assert torch.equal(net.conv2_offset.weight, state["conv2_offset.weight"])
    assert torch.equal(net.conv2.conv_offset.weight, state["conv2.conv_offset.weight"])


def test_without_the_function_torch_reports_the_foreign_name() -> None:
    net = nn.Sequential(Block())
    assert not net._load_state_dict_pre_hooks
    assert not net[0]._load_state_dict_pre_hooks
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0.conv2_offset.weight"'):
        net.load_state_dict(renamed(net.state_dict(), "conv2_offset"))


def test_the_order_of_keys_and_the_versions_of_layers_are_kept() -> None:
    net = nn.Sequential(Block(), nn.BatchNorm2d(6, track_running_stats=False))
    state = renamed(net.state_dict(), "conv2_offset")
    state._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]  # which torch.save keeps
    translated = rename_offset_keys(net, state)
    assert list(translated) == list(net.state_dict())
    assert translated._metadata["1"] == {"version": 2}  # type: ignore[attr-defined]
    assert not hasattr(rename_offset_keys(net, dict(state)), "_metadata")


def test_a_pack_under_two_paths_is_translated_under_both() -> None:
    pack = ModulatedDeformConv2dPack(4, 4, 3)
    net = nn.ModuleDict({"a": pack, "b": pack})
    state = {k.replace(".conv_offset", "_offset"): torch.randn_like(v) for k, v in net.state_dict().items()}
    assert list(rename_offset_keys(net, state)) == list(net.state_dict())


def test_assign_takes_the_given_tensors_under_their_other_name() -> None:
    with torch.device("meta"):
        net = nn.Sequential(Block())
    state = renamed(nn.Sequential(Block()).state_dict(), "conv2.conv_offset_mask")
    net.load_state_dict(rename_offset_keys(net, state), assign=True)
    assert net[0].conv2.conv_offset.weight.data_ptr() == state["0.conv2.conv_offset_mask.weight"].data_ptr()
