"""Deformable layers are leaves of every graph that torch.fx traces."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from torchdcn.nn import (
    DeformConv2d,
    DeformConv2dPack,
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformConv2dPack,
    ModulatedDeformRoIPoolPack,
    deformable,
    rename_offset_keys,
)

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[2.0, 3.0, 40.0, 50.0], [10.0, 0.0, 30.0, 20.0]])


class Convolutions(nn.Module):
    """The three layers, with offsets that are not zero; arguments by place and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.mask = nn.Conv2d(3, 18, 3, padding=1), nn.Conv2d(3, 9, 3, padding=1)
        self.given = DeformConv2d(3, 8, 3, padding=1)
        self.v1, self.v2 = DeformConv2dPack(8, 8, 3, padding=1), ModulatedDeformConv2dPack(8, 4, 3, padding=1)
        for pack in (self.v1, self.v2):
            nn.init.normal_(pack.conv_offset.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        once = self.given(x, self.offset(x))
        again: Tensor = self.v2(self.v1(once + self.given(x, mask=self.mask(x), offset=self.offset(x))))
        return again


class Poolings(nn.Module):
    """The pooling layers, with boxes as a list of proxies and as one of a tuple's members."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.v1 = DeformRoIPool(3, 0.5), DeformRoIPoolPack(3, 4, 8, 0.5)
        self.v2 = ModulatedDeformRoIPoolPack(3, 4, 8, 0.5, single_trunk=True)
        for last in (self.v1.offset_fc[4], self.v2.offset_mask_fc[4]):
            nn.init.normal_(last.weight)

    def forward(self, x: Tensor, one: Tensor, other: Tensor) -> Tensor:
        both: Tensor = (
            self.v1(x, [one, other]) + self.v2(input=x, boxes=(one, other)) + self.pool(x, boxes=[one, other])
        )
        return both


def calls(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


class EverythingIsTraced(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return isinstance(m, nn.Linear)


@pytest.mark.parametrize("tracer", [fx.Tracer, EverythingIsTraced])
def test_convolutions_are_leaves_with_the_eager_networks_values(tracer: type[fx.Tracer]) -> None:
    network = Convolutions()
    graph = tracer().trace(network)
    assert [name for name in calls(graph) if "offset" not in name and name != "mask"] == ["given", "given", "v1", "v2"]
    assert torch.equal(fx.GraphModule(network, graph)(IMAGE), network(IMAGE))


@pytest.mark.parametrize("tracer", [fx.Tracer, EverythingIsTraced])
def test_pooling_layers_are_leaves_with_the_eager_networks_values(tracer: type[fx.Tracer]) -> None:
    network, arguments = Poolings(), (torch.rand(2, 4, 32, 32), BOXES, BOXES[1:])
    graph = tracer().trace(network)
    assert calls(graph) == ["v1", "v2", "pool"]
    assert torch.equal(fx.GraphModule(network, graph)(*arguments), network(*arguments))


def test_a_call_is_recorded_as_it_was_made() -> None:
    graph = fx.Tracer().trace(Convolutions())
    first, second = (node for node in graph.nodes if node.target == "given")
    assert (len(first.args), first.kwargs) == (2, {})
    assert (len(second.args), set(second.kwargs)) == (1, {"offset", "mask"})
    assert (first.name, second.name) == ("given", "given_1")
    assert "given" in first.meta["nn_module_stack"]


def test_a_traced_network_learns_as_the_eager_one() -> None:
    network = Convolutions()
    traced = fx.symbolic_trace(copy.deepcopy(network))
    for model in (network, traced):
        model(IMAGE).square().mean().backward()
    gradients = dict(traced.named_parameters())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(gradients[name].grad, parameter.grad)


def resave(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "again",
    [
        copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), resave, fx.symbolic_trace,  # noqa: S301
        lambda m: fx.Transformer(m).transform(), lambda m: m.cpu().double().float(),
    ],
    ids=["copy", "deepcopy", "pickle", "save", "trace", "transform", "to"],
)  # fmt: skip
def test_a_traced_network_can_be_copied_and_saved(again: Callable[[Any], Any]) -> None:
    network = Convolutions()
    traced = again(fx.symbolic_trace(network))
    assert {"given", "v1", "v2"} < set(calls(traced.graph))
    assert torch.equal(traced(IMAGE), network(IMAGE))
    assert torch.equal(fx.Interpreter(traced).run(IMAGE), network(IMAGE))


def test_old_names_of_offsets_load_into_a_traced_network() -> None:
    network = Convolutions()
    state = {name.replace("v2.conv_offset.", "v2_offset."): value for name, value in network.state_dict().items()}
    traced = fx.symbolic_trace(Convolutions())
    traced.load_state_dict(rename_offset_keys(traced, state))
    assert torch.equal(traced(IMAGE), network(IMAGE))


# Tools that trace


def moved_resnet() -> nn.Module:
    """Deformable, in eval mode, with samples that have moved."""
    torch.manual_seed(0)
    network = deformable(resnet18()).eval()
    for module in network.modules():
        if isinstance(module, DeformConv2dPack):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    return network


def test_nodes_of_a_deformable_network_are_called_as_those_of_the_regular_one() -> None:
    assert get_graph_node_names(deformable(resnet18())) == get_graph_node_names(resnet18())


@pytest.mark.parametrize("training", [False, True])
def test_features_of_a_deformable_network_can_be_extracted(training: bool) -> None:
    network, kept = moved_resnet().train(training), {}
    extract = create_feature_extractor(copy.deepcopy(network), ["layer2.0.conv1", "layer3", "layer4"]).train(training)
    for name in ("layer2.0.conv1", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(lambda *given, name=name: kept.update({name: given[2]}))
    network(IMAGE.expand(2, -1, -1, -1))
    found = extract(IMAGE.expand(2, -1, -1, -1))
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_features_of_timms_network_can_be_extracted() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = deformable(timm.create_model("resnet18"), where="layer[34].*.conv2").eval()
    extract = timm.models.create_feature_extractor(network, ["layer3", "layer4"])
    expected: list[Tensor] = network.forward_intermediates(IMAGE, indices=[3, 4], intermediates_only=True)
    assert all(map(torch.equal, extract(IMAGE).values(), expected))


def test_convolutions_and_norms_of_a_deformable_network_can_be_fused() -> None:
    fuse = pytest.importorskip("torch.fx.experimental.optimization").fuse
    network = moved_resnet()
    fused = fuse(network)
    assert "layer2.0.conv1" in calls(fused.graph)
    assert "bn1" not in calls(fused.graph)  # the stem's, which follows an ordinary convolution
    torch.testing.assert_close(fused(IMAGE), network(IMAGE), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # torch announces the end of these functions, and of what they call
@pytest.mark.parametrize("training", [False, True], ids=["static", "aware"])
def test_the_rest_of_a_deformable_network_can_be_quantized(training: bool) -> None:
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping

    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without this engine")
    network = moved_resnet()
    expected = network(IMAGE)
    if training:
        mapping = get_default_qat_qconfig_mapping("x86")
        prepared = quantize_fx.prepare_qat_fx(copy.deepcopy(network).train(), mapping, (IMAGE,)).eval()
    else:
        prepared = quantize_fx.prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping("x86"), (IMAGE,))
    prepared(IMAGE)
    converted = quantize_fx.convert_fx(prepared)
    pack = converted.get_submodule("layer2.0.conv1")
    assert isinstance(pack, ModulatedDeformConv2dPack)
    assert torch.equal(pack.conv_offset.weight, network.get_parameter("layer2.0.conv1.conv_offset.weight"))
    assert isinstance(converted.get_submodule("layer1.0.conv1"), torch.ao.nn.intrinsic.quantized.ConvReLU2d)
    found = converted(IMAGE)
    assert nn.functional.cosine_similarity(found, expected).item() > 0.9


def test_a_tracer_that_computes_shapes_computes_those_of_deformable_layers() -> None:
    trace = pytest.importorskip("torch.fx.experimental.meta_tracer").symbolic_trace

    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pack = ModulatedDeformConv2dPack(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.pack(x)
            return y.flatten(1) if y.shape[2] == 62 else y

    with torch.device("meta"):
        traced = trace(Flattens(), meta_args={"x": torch.rand(1, 3, 64, 64)})
    assert calls(traced.graph) == ["pack"]
    assert "flatten" in traced.code


# What happens inside a layer happens once


class Doubles(ModulatedDeformConv2dPack):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


def test_a_subclass_with_a_forward_of_its_own_is_a_leaf() -> None:
    layer = Doubles(3, 4, 3)
    nn.init.normal_(layer.conv_offset.weight)
    network = nn.Sequential(layer)
    traced = fx.symbolic_trace(network)
    assert calls(traced.graph) == ["0"]
    assert torch.equal(traced(IMAGE), network(IMAGE))


def test_hooks_run_when_the_graph_runs_and_only_then() -> None:
    network, seen = nn.Sequential(ModulatedDeformConv2dPack(3, 4, 3)), list[Any]()
    network[0].register_forward_pre_hook(lambda _, given: (given[0] * 3,))
    network[0].register_forward_hook(lambda *given: seen.append(given[2]) or given[2] * 5)
    traced = fx.symbolic_trace(network)
    assert seen == []
    assert torch.equal(traced(IMAGE), network(IMAGE))
    assert len(seen) == 2


def test_weights_that_are_computed_stay_so() -> None:
    network = nn.Sequential(ModulatedDeformConv2dPack(3, 4, 3), DeformConv2dPack(4, 4, 3))
    prune.l1_unstructured(network[0], "weight", 0.5)
    nn.utils.parametrizations.weight_norm(network[1])
    traced = fx.symbolic_trace(network)
    assert torch.equal(traced(IMAGE), network(IMAGE))
    nn.init.ones_(network[0].weight_orig)
    assert torch.equal(traced(IMAGE), network(IMAGE))


# What can't be traced gets one line


class PastTheCall(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, other: Tensor) -> Any:
        return self.layer.forward(x) if type(self.layer) is DeformConv2dPack else self.layer.forward(x, other)


@pytest.mark.parametrize(
    "layer",
    [DeformConv2d(4, 4, 3), DeformConv2dPack(4, 4, 3), DeformRoIPool(7), DeformRoIPoolPack(7, 4, 8)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_alone_is_refused_with_what_to_do(layer: nn.Module) -> None:
    name = type(layer).__name__
    for traced in (layer, PastTheCall(layer)):
        with pytest.raises(TypeError, match=rf"^{name}: torch\.fx traces a deformable layer only as a part of a net"):
            fx.symbolic_trace(traced)


def test_a_proxy_outside_of_a_trace_is_refused_with_what_to_do() -> None:
    proxy = fx.Proxy(fx.Graph().placeholder("x"))
    with pytest.raises(TypeError, match=r"^DeformConv2dPack: .*; add the layer to a graph with graph\.call_module"):
        DeformConv2dPack(4, 4, 3)(proxy)
