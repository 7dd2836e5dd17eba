"""What deformable() chooses, refuses and keeps. tests/nn/test_surgery_networks.py has whole networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import Conv2dNormActivation

from torchdcn.nn import DeformConv2dPack, ModulatedDeformConv2dPack, deformable, offset_parameters


class Net(nn.Module):
    """A little of everything that a network may be made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(3, 8, 3)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, (3, 5), stride=2, padding=(1, 2), groups=2), nn.Conv2d(8, 8, 1)])
        self.heads = nn.ModuleDict({"box": nn.Conv2d(8, 4, 3, padding="same", bias=False), "norm": nn.BatchNorm2d(4)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        return self.heads["norm"](self.heads["box"](x))  # type: ignore[no-any-return]


def packs(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, DeformConv2dPack)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_default_is_every_convolution_larger_than_1x1() -> None:
    net, image = Net().eval(), torch.rand(2, 3, 15, 17)
    before = net(image)
    assert deformable(net) is net
    assert packs(net) == ["stem.0", "blocks.0", "heads.box"]
    torch.testing.assert_close(net(image), before, rtol=1e-5, atol=1e-6)


def test_the_default_in_a_resnet_is_c3_to_c5_and_only_there() -> None:
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert packs(deformable(detector)) == [
        f"backbone.body.layer{stage}.{block}.conv2" for stage, n in ((2, 4), (3, 6), (4, 3)) for block in range(n)
    ]


def test_the_default_leaves_what_a_pack_cannot_replace() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), nn.Conv2d(4, 4, 3), nn.Linear(3, 3))
    assert packs(deformable(net)) == ["1"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("blocks.1", ["blocks.1"]),
        ("blocks.?", ["blocks.0", "blocks.1"]),
        (["stem.0", "*box"], ["stem.0", "heads.box"]),
        ((name for name in ("stem.0", "stem.0")), ["stem.0"]),
        (lambda name, conv: conv.groups == 2 and name.startswith("blocks"), ["blocks.0"]),
    ],
    ids=["path", "pattern", "list", "generator", "callable"],
)
def test_where_chooses_by_path_pattern_or_callable(where: Any, expected: list[str]) -> None:
    net, image = Net().eval(), torch.rand(1, 3, 15, 17)
    before = net(image)
    assert packs(deformable(net, where)) == expected
    torch.testing.assert_close(net(image), before, rtol=1e-5, atol=1e-6)


def test_a_callable_is_not_asked_about_the_convolutions_inside_packs() -> None:
    net = deformable(Net(), "stem.0")
    asked = []

    def where(name: str, _: nn.Conv2d) -> bool:
        asked.append(name)
        return name == "blocks.1"

    deformable(net, where)
    assert asked == ["blocks.0", "blocks.1", "heads.box"]


def test_a_root_convolution_comes_back_as_a_pack() -> None:
    for where in (None, "*", lambda _, conv: conv.bias is not None):
        conv, image = nn.Conv2d(4, 6, 1), torch.rand(1, 4, 5, 5)
        pack = deformable(conv, where)
        assert isinstance(pack, ModulatedDeformConv2dPack)
        torch.testing.assert_close(pack(image), conv(image), rtol=1e-5, atol=1e-6)


class Subclass(nn.Conv2d):
    pass


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5)  # type: ignore[no-any-return]


def hooked() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


def hooked_weight() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.weight.register_hook(lambda gradient: gradient)
    return conv


def overridden() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.forward = nn.Identity().forward  # type: ignore[method-assign]
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3), "a ConvTranspose2d and not an nn.Conv2d"),
        (lambda: nn.Conv1d(4, 4, 3), "a Conv1d and not an nn.Conv2d"),
        (lambda: nn.BatchNorm2d(4), "a BatchNorm2d and not an nn.Conv2d"),
        (lambda: Subclass(4, 4, 3), "it is a Subclass, and what a subclass"),
        (lambda: nn.LazyConv2d(4, 3), "it is a LazyConv2d, and what a subclass"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "its weight is computed from other parameters"),
        (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "its weight is computed from other parameters"),
        (pruned, "its weight is computed from other parameters"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "its padding_mode is 'circular'"),
        (lambda: nn.Conv2d(4, 4, (3, 2), padding="same"), r"padding='same' with a kernel of \(3, 2\)"),
        (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), "its weight is torch.complex64"),
        (hooked, "it has hooks, which would be lost"),
        (hooked_weight, "it has hooks, which would be lost"),
        (overridden, "a forward of its own, which would be lost"),
        (lambda: ModulatedDeformConv2dPack(4, 4, 3), "it is a ModulatedDeformConv2dPack already"),
    ],
)  # fmt: skip
def test_what_cannot_be_replaced_is_named_and_nothing_is_changed(make: Callable[[], nn.Module], reason: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), make())
    children, keys = list(net), list(net.state_dict())
    with pytest.raises(ValueError, match=f"^where: .*1.*{reason}") as error:
        deformable(net, ["0", "1"])
    assert "\n" not in str(error.value)
    assert all(a is b for a, b in zip(net, children, strict=True))
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize(
    ("where", "kind", "message"),
    [
        ("stemm.0", ValueError, "where: 'stemm.0' matches no module .* nearest convolutions are stem.0, "),
        ("*.conv9", ValueError, "where: .* matches no module"),
        ("blocks*", ValueError, "where: 'blocks\\*' matches blocks, which is a ModuleList .*give a callable"),
        ("heads.norm", ValueError, "where: .* heads.norm, which is a BatchNorm2d and not an nn.Conv2d$"),
        ([], ValueError, "where: expected at least one pattern, got none"),
        pytest.param(
            lambda *_: False, ValueError, "where: the callable chose none of the model's 4 convolutions", id="none"
        ),
        (nn.ReLU(), TypeError, "where: expected a pattern, several, or a callable .*, got ReLU$"),
        (nn.ReLU, TypeError, "where: expected a pattern, several, or a callable .*, got type$"),
        ([3], TypeError, "where: expected a pattern, several, or a callable .*, got int among them$"),
        (b"stem", TypeError, "where: expected .*, got bytes$"),
        (3, TypeError, "where: expected .*, got int$"),
    ],
    ids=str,
)  # fmt: skip
def test_a_where_that_cannot_be_is_explained(where: Any, kind: type[Exception], message: str) -> None:
    net = Net()
    with pytest.raises(kind, match=message):
        deformable(net, where)
    assert packs(net) == []


def test_a_pattern_that_reaches_into_a_pack_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"where: stem.0.conv_offset is chosen, but .* it predicts the offsets of stem.0"
    ):
        deformable(deformable(Net(), "stem.0"), "*conv_offset")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 3), "model: this Linear has no nn.Conv2d"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "model: can't become deformable: its padding_mode"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1)),
            "where: by default, this Sequential has no convolution .* 1x1 .* a pattern",
        ),
        (nn.Sequential(Subclass(3, 3, 3)), "where: by default, .*: 0, for example, can't .*: it is a Subclass"),
    ],
)
def test_a_model_with_nothing_to_replace_by_default_is_explained(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deformable(model)


def test_a_second_time_by_default_says_that_there_is_nothing_left() -> None:
    with pytest.raises(ValueError, match="layer2 to layer4 has no convolution to replace: what is deformable already"):
        deformable(deformable(resnet18()))


def test_wrong_models_and_groups_are_named() -> None:
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got str"):
        deformable("resnet18")  # type: ignore[arg-type]
    for wrong in (0, -1, 1.0, "2", True):
        with pytest.raises(ValueError, match=f"deform_groups: expected an int of at least 1, got {wrong!r}"):
            deformable(Net(), deform_groups=wrong)  # type: ignore[arg-type]
    net = Net()
    with pytest.raises(ValueError, match=r"deform_groups: expected a divisor of the 3 input channels of stem.0, got 2"):
        deformable(net, deform_groups=2)
    assert packs(net) == []
    assert deformable(net, "blocks.*", deform_groups=2).blocks[0].conv_offset.out_channels == 2 * 3 * 15  # type: ignore[index, union-attr]


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": (2, 1), "padding": (0, 2)},
    "dilated same": {"padding": "same", "dilation": (2, 3)},
    "even same": {"kernel_size": 2, "dilation": 2, "padding": "same"},
    "valid": {"padding": "valid", "stride": 2},
    "depthwise": {"groups": 8, "padding": 1},
    "grouped, no bias": {"groups": 2, "bias": False},
    "1x1": {"kernel_size": 1},
}


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_every_kind_of_convolution_is_unchanged_at_first(arguments: dict[str, Any], modulated: bool) -> None:
    conv = nn.Conv2d(8, 16, **({"kernel_size": 3} | arguments), dtype=torch.float64)
    input = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    pack = deformable(conv, modulated=modulated, deform_groups=2)
    assert type(pack) is (ModulatedDeformConv2dPack if modulated else DeformConv2dPack)
    torch.testing.assert_close(pack(input), conv(input), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_layout_mode_and_frozen_parameters_stay(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 4, 3, dtype=dtype).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    pack = deformable(nn.Sequential(conv))[0]  # type: ignore[index]
    assert {p.dtype for p in pack.parameters()} == {dtype}
    assert pack.weight.is_contiguous(memory_format=torch.channels_last)
    assert pack.conv_offset.weight.is_contiguous(memory_format=torch.channels_last)
    assert not pack.training
    assert not pack.conv_offset.training
    assert [name for name, p in pack.named_parameters() if p.requires_grad] == [
        "conv_offset.weight",
        "conv_offset.bias",
    ]
    assert torch.equal(pack.weight, 2 * conv.weight)
    assert pack.bias is conv.bias
    pack(torch.rand(1, 4, 5, 5, dtype=dtype)).sum().backward()
    assert all(parameter.grad is not None for parameter in offset_parameters(pack))


def test_a_model_without_memory_stays_without() -> None:
    net = deformable(Net().to("meta"))
    assert {p.device.type for p in net.parameters()} == {"meta"}


def test_neither_random_numbers_nor_the_old_convolution_are_touched() -> None:
    net = Net()
    conv, state = net.blocks[0], torch.get_rng_state()
    weight = conv.weight.clone()  # type: ignore[operator]
    deformable(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(conv.weight, weight)  # type: ignore[arg-type]


def test_a_shared_convolution_stays_shared() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), nn.Sequential(conv))
    input = torch.rand(1, 4, 6, 6)
    before = net(input)
    deformable(net, "2.0")
    assert isinstance(net[0], DeformConv2dPack)
    assert net[0] is net[2][0]  # type: ignore[index]
    torch.testing.assert_close(net(input), before, rtol=1e-5, atol=1e-6)


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    net[1].weight = net[0].weight
    return net


def test_weights_tied_between_convolutions_stay_tied() -> None:
    net, input = tied(), torch.rand(1, 4, 6, 6)
    before = net(input)
    deformable(net)
    assert net[0].weight is net[1].weight
    torch.testing.assert_close(net(input), before, rtol=1e-5, atol=1e-6)


def test_a_weight_is_not_doubled_under_a_convolution_that_stays() -> None:
    net = tied()
    with pytest.raises(ValueError, match=r"where: 0 can't .* is also 1\.weight, which isn't chosen"):
        deformable(net, "0")
    assert packs(net) == []
    weight = net[1].weight
    assert deformable(net, "0", modulated=False)[0].weight is weight  # type: ignore[index]


def test_attributes_that_others_left_on_a_convolution_are_carried() -> None:
    conv = nn.Conv2d(4, 4, 3)
    conv.note = "keep me"  # type: ignore[assignment]
    assert deformable(conv).note == "keep me"


def test_training_moves_the_offsets_and_lowers_the_loss() -> None:
    net = deformable(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)))
    slow = set(offset_parameters(net))
    assert {name for name, p in net.named_parameters() if p in slow} == {
        f"{i}.conv_offset.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")
    }
    image = torch.nn.functional.avg_pool2d(torch.rand(4, 1, 18, 18), 3, 1)
    target = image.roll((1, 1), (2, 3))
    optimizer = torch.optim.Adam(
        [{"params": [p for p in net.parameters() if p not in slow]}, {"params": list(slow)}], 0.02
    )
    losses = []
    for _ in range(30):
        loss = (net(image) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for layer in (net[0], net[2]):  # type: ignore[index]
        offset, mask = layer.predict(torch.rand(1, layer.in_channels, 8, 8))
        assert offset.abs().max() > 0.05
        assert (mask - 0.5).abs().max() > 0.01
