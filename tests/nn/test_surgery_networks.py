"""deformable() on whole networks of torchvision and timm: the same output at first, mmcv's keys, and what follows."""

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d

from torchdcn.analysis import Node, sampling_locations
from torchdcn.nn import DeformConv2dPack, deformable, offset_parameters

KEYS = Path(__file__).parents[2].parent / "shared" / "vectors" / "keys"
CONV2 = "layer[234].*.conv2"


def timm(name: str, **arguments: Any) -> nn.Module:
    library = pytest.importorskip("timm", reason="timm is not installed")
    model: nn.Module = library.create_model(name, pretrained=False, **arguments)
    return model


def lively(model: nn.Module) -> nn.Module:
    """Away from what a fresh network has: branches that are zero or nearly so, and statistics of 0 and 1."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("gamma", "running_var")) or (value.ndim == 1 and name.endswith("weight")):
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim == 1 and name.endswith(("bias", "running_mean")):
            nn.init.normal_(value, std=0.1)
    return model


# model, where, deform_groups, modulated, how many packs
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str | None, int, bool, int]] = {
    "torchvision resnet18": (resnet18, None, 1, True, 12),
    "torchvision resnet50": (resnet50, CONV2, 1, True, 13),
    "torchvision resnet50 v1, 4 groups": (resnet50, CONV2, 4, False, 13),
    "torchvision resnext50": (resnext50_32x4d, CONV2, 4, True, 13),
    "timm resnet18": (partial(timm, "resnet18.a1_in1k"), CONV2, 1, True, 6),
    "timm convnext": (partial(timm, "convnext_tiny"), "stages.3.*.conv_dw", 1, True, 3),
    "timm mobilenetv3": (partial(timm, "mobilenetv3_small_100"), None, 1, True, 12),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("make", "where", "deform_groups", "modulated", "count"), list(NETWORKS.values()), ids=list(NETWORKS)
)
def test_a_network_computes_at_first_what_it_did(
    make: Callable[[], nn.Module], where: str | None, deform_groups: int, modulated: bool, count: int
) -> None:
    model, image = lively(make()), torch.rand(2, 3, 96, 64)
    new = deformable(copy.deepcopy(model), where, modulated, deform_groups)
    assert sum(isinstance(module, DeformConv2dPack) for module in new.modules()) == count
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model, new, image = model.to(dtype), new.to(dtype), image.to(dtype)
        with torch.no_grad():
            expected = model.eval()(image)
            assert expected.std() > 1e-3
            assert relative(new.eval()(image), expected) < tolerance
            # Batch statistics over the few values of a small picture magnify the rounding of the layers before.
            if dtype == torch.float64:
                torch.manual_seed(1)  # for dropout
                expected = model.train()(image)
                torch.manual_seed(1)
                assert relative(new.train()(image), expected) < tolerance


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_training_mode_in_float32_too() -> None:
    model, image = lively(resnet18()), torch.rand(4, 3, 128, 128)
    new = deformable(copy.deepcopy(model), CONV2)
    with torch.no_grad():
        assert relative(new.train()(image), model.train()(image)) < 1e-5


def test_keys_of_a_resnet_are_those_of_mmdetections_backbone() -> None:
    file = KEYS / "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.keys.json"
    if not file.is_file():
        pytest.skip("the lists of mmdetection's keys are not beside the project (../shared/vectors/keys)")
    theirs = {
        key.removeprefix("backbone."): shape for key, shape, _ in json.loads(file.read_text()) if "backbone" in key
    }
    ours = {k: list(v.shape) for k, v in deformable(resnet50(), CONV2).state_dict().items() if not k.startswith("fc.")}
    assert "layer2.0.conv2.conv_offset.weight" in ours
    assert ours == theirs


def test_a_network_is_saved_loaded_copied_pickled_and_compiled(tmp_path: Path) -> None:
    model, image = deformable(lively(resnet18()), CONV2).eval(), torch.rand(1, 3, 64, 64)
    for parameter in offset_parameters(model):
        nn.init.normal_(parameter, std=0.01)
    expected = model(image)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = deformable(resnet18(), CONV2).eval()
    loaded.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - it is our own
        assert torch.equal(other(image), expected)
        assert other.layer2[0].conv2.weight is not model.layer2[0].conv2.weight  # type: ignore[index, union-attr]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected, rtol=1e-5, atol=1e-5)
    compiled(image).mean().backward()
    assert all(parameter.grad is not None for parameter in offset_parameters(model))


def test_a_compiled_network_can_be_changed_afterwards() -> None:
    model, image = resnet18().eval(), torch.rand(1, 3, 64, 64)
    compiled = torch.compile(model, backend="aot_eager")
    expected = compiled(image)
    deformable(model, "layer4.1.conv2")
    torch.testing.assert_close(compiled(image), expected, rtol=1e-5, atol=1e-5)
    nn.init.ones_(model.layer4[1].conv2.conv_offset.bias)
    assert relative(compiled(image), expected) > 1e-3


@pytest.mark.parametrize("make", [resnet18, partial(timm, "resnet18.a1_in1k")], ids=["torchvision", "timm"])
def test_sampling_locations_of_a_changed_network_can_be_seen(make: Callable[[], nn.Module]) -> None:
    model = deformable(make(), CONV2)
    node = Node(layer="layer3", y=2, x=3)
    found = sampling_locations(model, torch.rand(3, 96, 128), node, depth=2)
    assert found.layers == ("layer3.1.conv2", "layer3.0.conv2")
    assert found.centre.tolist() == [48.0, 32.0]
    assert torch.equal(found.points, found.regular)
    nn.init.constant_(model.get_submodule("layer3.1.conv2.conv_offset.bias".rpartition(".")[0]).bias, 0.5)  # type: ignore[arg-type]
    moved = sampling_locations(model, torch.rand(3, 96, 128), node, depth=2)
    torch.testing.assert_close(moved.points, found.regular + 8)  # half a step of stride 16
