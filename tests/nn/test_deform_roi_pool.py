from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from torchdcn.nn import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack, offset_parameters

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors"
BOXES = torch.tensor([[0, 1.0, 2.0, 30.0, 20.0], [1, -3.0, 5.0, 9.0, 9.5], [0, 12.0, 3.0, 14.0, 28.0]])
PACKS = (DeformRoIPoolPack, ModulatedDeformRoIPoolPack)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize(("pack", "kind"), list(zip(PACKS, ("plain", "modulated"), strict=True)), ids=["v1", "v2"])
def test_packs_give_what_mmcv_computed_with_the_same_weights(
    pack: type[DeformRoIPoolPack], kind: str, ratio: int
) -> None:
    file = VECTORS / f"op_{kind}_deform_roi_pool_pack_sr{ratio}.npz"
    if not file.is_file():
        pytest.skip("mmcv's vectors are not beside the project (../shared/vectors)")
    vectors = np.load(file)

    def read(key: str) -> Tensor:
        return torch.from_numpy(vectors[key]).double()

    layer = pack(7, 6, 32, 0.25, ratio, float(np.float32(0.1))).double()  # mmcv's gamma is a float32
    keys = [key[2:] for key in vectors if key.startswith("w/")]
    layer.load_state_dict({key: read(f"w/{key}") for key in keys})
    input = read("x").requires_grad_()
    output = layer(input, read("rois"))
    torch.testing.assert_close(output, read("out"), rtol=1e-12, atol=1e-12)
    leaves = dict(layer.named_parameters())
    gradients = torch.autograd.grad(output, [input, *leaves.values()], read("grad_out"))
    assert set(leaves) == set(keys)
    # What goes through the offsets differs where a sample was moved to the border: mmcv's own is not the derivative
    # (../shared/mmdet.md). The mask's gradients don't depend on it.
    for key, gradient in zip(leaves, gradients[1:], strict=True):
        if key.startswith("mask_fc"):
            torch.testing.assert_close(gradient, read(f"g/{key}"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("pack", "factor"), list(zip(PACKS, (1.0, 0.5), strict=True)), ids=["v1", "v2"])
def test_a_new_pack_is_roi_align(pack: type[DeformRoIPoolPack], factor: float) -> None:
    input = torch.rand(2, 4, 9, 11)
    expected = torchvision.ops.roi_align(input, BOXES, (3, 5), 0.3, 2, aligned=True) * factor
    found = pack((3, 5), 4, 16, spatial_scale=0.3, sampling_ratio=2)(input, BOXES)
    torch.testing.assert_close(found, expected)


def test_keys_and_shapes_are_mmcvs() -> None:
    def shapes(layer: torch.nn.Module) -> dict[str, list[int]]:
        return {key: list(value.shape) for key, value in layer.state_dict().items()}

    offset_fc = {
        "offset_fc.0.weight": [1024, 256 * 49], "offset_fc.0.bias": [1024], "offset_fc.2.weight": [1024, 1024],
        "offset_fc.2.bias": [1024], "offset_fc.4.weight": [98, 1024], "offset_fc.4.bias": [98],
    }  # fmt: skip
    mask_fc = {
        "mask_fc.0.weight": [1024, 256 * 49], "mask_fc.0.bias": [1024], "mask_fc.2.weight": [49, 1024],
        "mask_fc.2.bias": [49],
    }  # fmt: skip
    with torch.device("meta"):
        assert shapes(DeformRoIPoolPack(7, 256)) == offset_fc
        assert shapes(ModulatedDeformRoIPoolPack(7, 256)) == offset_fc | mask_fc


def test_offsets_come_x_first_and_the_mask_after_a_sigmoid() -> None:
    layer = ModulatedDeformRoIPoolPack((1, 2), 3, 8)
    with torch.no_grad():
        layer.offset_fc[4].bias[:] = torch.arange(4.0)
        layer.mask_fc[2].bias[:] = torch.tensor([1.0, 2.0])
    offset, mask = layer.predict(torch.rand(5, 3, 1, 2))
    assert mask is not None
    assert offset[4].tolist() == [[[0.0, 1.0]], [[2.0, 3.0]]]
    torch.testing.assert_close(mask[4, 0, 0], torch.tensor([1.0, 2.0]).sigmoid())
    # A box of 20 x 10 pixels, moved by gamma times its size: x by 2, y by 1.
    ramp = torch.arange(40.0).expand(30, 40)
    input = torch.stack([ramp, torch.arange(30.0)[:, None].expand(30, 40)])[None]
    box, one = torch.tensor([[0, 10.0, 10.0, 30.0, 20.0]]), torch.ones(1, 1, 1, 1)
    pool = DeformRoIPool(1)
    moved = pool(input, box, torch.cat([one, one], 1)) - pool(input, box)
    torch.testing.assert_close(moved.flatten(), torch.tensor([2.0, 1.0]))


def test_the_papers_single_trunk_predicts_both() -> None:
    torch.manual_seed(0)
    layer = ModulatedDeformRoIPoolPack((2, 3), 4, 64, spatial_scale=0.3, single_trunk=True)
    assert {key: list(value.shape) for key, value in layer.state_dict().items() if "weight" in key} == {
        "offset_mask_fc.0.weight": [64, 24],
        "offset_mask_fc.2.weight": [64, 64],
        "offset_mask_fc.4.weight": [18, 64],
    }
    for i in (0, 2):
        assert 0.008 < float(layer.offset_mask_fc[i].weight.detach().std()) < 0.012
        assert not layer.offset_mask_fc[i].bias.any()
    assert not any(p.any() for p in layer.offset_mask_fc[4].parameters())
    input = torch.rand(2, 4, 9, 11)
    expected = torchvision.ops.roi_align(input, BOXES, (2, 3), 0.3, 0, aligned=True) / 2
    torch.testing.assert_close(layer(input, BOXES), expected)
    with torch.no_grad():
        layer.offset_mask_fc[4].bias[:] = torch.arange(18.0)
    offset, mask = layer.predict(torch.rand(1, 4, 2, 3))
    assert mask is not None
    assert offset.flatten().tolist() == list(range(12))
    torch.testing.assert_close(mask.flatten(), torch.arange(12.0, 18.0).sigmoid())


@pytest.mark.parametrize("single_trunk", [False, True])
def test_what_predicts_gets_gradients_from_the_start(single_trunk: bool) -> None:
    layer = ModulatedDeformRoIPoolPack(3, 4, 16, spatial_scale=0.3, single_trunk=single_trunk)
    layer(torch.rand(2, 4, 9, 11), BOXES).square().sum().backward()
    last = [layer.offset_mask_fc[4]] if single_trunk else [layer.offset_fc[4], layer.mask_fc[2]]
    for linear in last:
        assert isinstance(linear.bias, Tensor)
        assert linear.bias.grad is not None
        assert (linear.bias.grad != 0).any()
    assert not list(offset_parameters(layer))  # the paper trains these at the full rate


@pytest.mark.parametrize("pack", PACKS, ids=["v1", "v2"])
def test_no_boxes_train_too(pack: type[DeformRoIPoolPack]) -> None:
    layer = pack(2, 3, 8)
    output = layer(torch.rand(2, 3, 9, 9), [torch.zeros(0, 4)] * 2)
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_runs_under_autocast_and_compiles() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    layer, input = ModulatedDeformRoIPoolPack(3, 4, 16, spatial_scale=0.3), torch.rand(2, 4, 9, 11)
    torch.nn.init.normal_(layer.offset_fc[4].weight)  # type: ignore[arg-type]  # a tensor
    plain = layer(input, BOXES)
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(input, BOXES)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), plain, rtol=3e-2, atol=3e-2)
    cast.sum().backward()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input, BOXES), plain)


def test_a_layer_prints_what_it_was_made_of() -> None:
    assert repr(DeformRoIPool((7, 5), 0.25, gamma=0.5)) == (
        "DeformRoIPool(output_size=(7, 5), spatial_scale=0.25, sampling_ratio=0, gamma=0.5)"
    )
    layer = ModulatedDeformRoIPoolPack(2, 3, 8, single_trunk=True)
    assert "output_channels=3, deform_fc_channels=8, single_trunk=True" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "output_size: expected an int or a pair of ints of at least 1, got 0"),
        ((7, 8.0), "output_channels: expected an int of at least 1, got 8.0"),
        ((7, 8, 0), "deform_fc_channels: expected an int of at least 1, got 0"),
        ((7, 8, 8, "1"), "spatial_scale: expected a finite number, got '1'"),
        ((7, 8, 8, 1.0, 1.5), "sampling_ratio: expected an int, got 1.5"),
        ((7, 8, 8, 1.0, 0, float("nan")), "gamma: expected a finite number, got nan"),
    ],
    ids=str,
)
def test_a_wrong_argument_gets_one_line_with_its_name(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ModulatedDeformRoIPoolPack(*arguments)


def test_an_input_of_other_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"^input: expected \[N, 8, H, W\], got shape \[1, 4, 9, 9\]$"):
        DeformRoIPoolPack(7, 8, 8)(torch.rand(1, 4, 9, 9), BOXES[:1])
