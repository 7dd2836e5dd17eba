import pytest
import torch
import torchvision

from torchdcn.nn import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, offset_parameters


def test_layer_equals_torchvisions_with_the_same_weights() -> None:
    arguments = {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": 1, "groups": 2}
    theirs = torchvision.ops.DeformConv2d(8, 12, **arguments)
    layer = DeformConv2d(8, 12, **arguments)  # type: ignore[arg-type]
    layer.load_state_dict(theirs.state_dict())
    input, offset, mask = torch.rand(2, 8, 9, 7), torch.randn(2, 60, 5, 7), torch.rand(2, 30, 5, 7)
    torch.testing.assert_close(layer(input, offset, mask), theirs(input, offset, mask), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(input, offset), theirs(input, offset), rtol=1e-4, atol=1e-5)


def test_layer_starts_as_conv2d_does() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(8, 12, 3)
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(8, 12, 3)
    assert torch.equal(layer.weight, plain.weight)
    assert layer.bias is not None
    assert plain.bias is not None
    assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize(
    "arguments", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2, "groups": 4}], ids=str
)
@pytest.mark.parametrize(("pack", "factor"), [(DeformConv2dPack, 1.0), (ModulatedDeformConv2dPack, 0.5)])
def test_a_new_pack_is_a_plain_convolution(
    pack: type[DeformConv2dPack], factor: float, arguments: dict[str, int]
) -> None:
    layer = pack(8, 12, 3, **arguments, bias=False)
    input = torch.rand(2, 8, 9, 7)
    plain = torch.nn.functional.conv2d(input, layer.weight * factor, **arguments)
    torch.testing.assert_close(layer(input), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pack", "per_tap"), [(DeformConv2dPack, 2), (ModulatedDeformConv2dPack, 3)])
def test_keys_and_shapes_are_mmcvs(pack: type[DeformConv2dPack], per_tap: int) -> None:
    layer = pack(8, 12, 3, 2, 1, 1, 1, 4)
    assert {key: list(value.shape) for key, value in layer.state_dict().items()} == {
        "weight": [12, 8, 3, 3],
        "bias": [12],
        "conv_offset.weight": [per_tap * 4 * 9, 8, 3, 3],
        "conv_offset.bias": [per_tap * 4 * 9],
    }


def test_modulated_pack_splits_its_prediction_into_offsets_then_mask() -> None:
    layer = ModulatedDeformConv2dPack(4, 4, 3, padding=1)
    with torch.no_grad():
        layer.conv_offset.bias[:] = torch.arange(27.0)  # type: ignore[index]  # it has one
    offset, mask = layer.predict(torch.zeros(1, 4, 5, 5))
    assert mask is not None
    assert offset[0, :, 2, 2].tolist() == list(range(18))
    torch.testing.assert_close(mask[0, :, 2, 2], torch.arange(18.0, 27.0).sigmoid())


def test_offsets_get_gradients_from_the_start() -> None:
    layer = ModulatedDeformConv2dPack(4, 4, 3, padding=1)
    layer(torch.rand(1, 4, 6, 6)).square().sum().backward()
    gradient = layer.conv_offset.bias.grad  # type: ignore[union-attr]  # it has one
    assert gradient is not None
    assert (gradient != 0).all()


def test_offset_parameters_are_those_of_the_predicting_convolutions() -> None:
    model = torch.nn.Sequential(ModulatedDeformConv2dPack(4, 4, 3), torch.nn.Conv2d(4, 4, 3), DeformConv2dPack(4, 4, 3))
    chosen = {id(p) for p in offset_parameters(model)}
    assert {name for name, p in model.named_parameters() if id(p) in chosen} == {
        "0.conv_offset.weight", "0.conv_offset.bias", "2.conv_offset.weight", "2.conv_offset.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "groups: expected a divisor of in_channels=8"),
        ({"deform_groups": 5}, "deform_groups: expected"),
    ],
)
def test_groups_that_do_not_divide_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModulatedDeformConv2dPack(8, 6, 3, **arguments)
