"""In which layout a run keeps its weights and its optimiser's moments: no step copies or confuses them."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

from torchdcn.nn import DeformConv2d
from torchdcn.training import checkpoint, train
from torchdcn.training.optim import parameter_groups

LAST = torch.channels_last


def quiet():
    return Console(file=io.StringIO(), width=400)


@pytest.fixture
def deformable(config):
    """A run of one step, whose network has both kinds of convolution."""
    return replace(config, model="mask_rcnn_r18_fpn_mdconv_c3-c5", batch_size=6)


class Seen:
    """Stands for an evaluation, and keeps the model."""

    def __call__(self, model):
        self.model = model
        return {"bbox": {"AP": 0.0}}


def misplaced(model):
    """Convolutions whose weight would be copied into another layout at each call."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, DeformConv2d)):
            layout = torch.contiguous_format if isinstance(module, DeformConv2d) else LAST
            if not module.weight.is_contiguous(memory_format=layout):
                found.append(name)
    return found


def moments(config, model):
    """Each trained parameter with what the last checkpoint's optimiser remembers of it."""
    saved = checkpoint.read_checkpoint(f"{config.out}/checkpoint.pt")["optimizer"]
    parameters = [parameter for group in parameter_groups(model, config) for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for parameter, number in zip(parameters, numbers, strict=True):
        for value in saved["state"][number].values():
            if isinstance(value, torch.Tensor) and value.dim():
                yield parameter, value


def test_a_step_leaves_every_weight_and_moment_in_its_layout(deformable):
    seen = Seen()
    train(deformable, seen, console=quiet())
    layers = list(seen.model.modules())
    assert sum(isinstance(layer, DeformConv2d) for layer in layers) == 6
    assert misplaced(seen.model) == []
    pairs = list(moments(deformable, seen.model))
    assert len(pairs) > 100
    assert all(moment.stride() == parameter.stride() for parameter, moment in pairs)
    gradients = [(p, p.grad) for p in seen.model.parameters() if p.grad is not None]
    assert all(gradient.stride() == parameter.stride() for parameter, gradient in gradients)


def ancestors(event):
    while (event := event.cpu_parent) is not None:
        yield event.name


def test_no_deformable_layer_copies_its_weight_in_a_step(deformable):
    seen = Seen()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        train(deformable, seen, console=quiet())
    shapes = {tuple(layer.weight.shape) for layer in seen.model.modules() if isinstance(layer, DeformConv2d)}
    copied = [event for event in profiler.events() if event.name == "aten::copy_" and event.input_shapes]
    inside = [event for event in copied if any("deform_conv2d" in name for name in ancestors(event))]
    assert inside  # offsets are, to be without gaps
    assert [event for event in inside if tuple(event.input_shapes[0]) in shapes] == []


@pytest.mark.filterwarnings("ignore:recipe")  # the published one expects pretrained weights
@pytest.mark.parametrize("recipe", ["scratch", "1x"])
def test_a_run_resumed_from_another_layout_learns_as_from_its_own(deformable, recipe):
    """As from a GPU's checkpoint: torch's fused optimisers would give weights the momentum of others."""
    weights = {}
    for layout in ("own", torch.contiguous_format, LAST):
        config = replace(deformable, recipe=recipe, out=f"{deformable.out}-{layout}")
        train(config, console=quiet())
        if layout != "own":
            path = f"{config.out}/checkpoint.pt"
            content = checkpoint.read_checkpoint(path)
            for group in (content["model"], *content["optimizer"]["state"].values()):
                for name, value in group.items():
                    if isinstance(value, torch.Tensor) and value.dim() == 4:
                        group[name] = value.contiguous(memory_format=layout)
            checkpoint._write(content, checkpoint.Path(path))
        seen = Seen()
        longer = replace(config, epochs=2)
        train(longer, seen, resume=True, console=quiet())
        assert misplaced(seen.model) == []
        assert all(moment.stride() == parameter.stride() for parameter, moment in moments(longer, seen.model))
        weights[layout] = seen.model.state_dict()
    for layout in (torch.contiguous_format, LAST):
        assert all(torch.equal(value, weights["own"][name]) for name, value in weights[layout].items())
