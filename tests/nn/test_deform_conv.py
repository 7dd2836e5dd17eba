import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from torchdcn.nn import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, offset_parameters

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors"


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


def test_offset_channels_are_dy_dx_per_tap_and_deformable_group() -> None:
    layer = ModulatedDeformConv2dPack(2, 1, 1, deform_groups=2, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.conv_offset.bias[:] = torch.tensor([1.0, 0.0, 0.0, 2.0, 50.0, 50.0])  # type: ignore[index]  # it has one
    input = torch.rand(1, 2, 6, 7)
    # The first group looks one row down, the second two columns to the right; both masks are 1.
    expected = torch.zeros(6, 7)
    expected[:-1] += input[0, 0, 1:]
    expected[:, :-2] += input[0, 1, :, 2:]
    torch.testing.assert_close(layer(input)[0, 0], expected)


class Predicts(torch.nn.Module):
    def __init__(self, prediction: Any) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, _: Any) -> Any:
        return self.prediction


def test_packs_give_what_mmcv_computed_from_such_a_prediction() -> None:
    file = VECTORS / "op_modulated_deform_conv2d.npz"
    if not file.is_file():
        pytest.skip("mmcv's vectors are not beside the project (../shared/vectors)")
    vectors, cases = np.load(file), json.loads((VECTORS / "op_deform_conv_cases.json").read_text())
    for i, case in enumerate(cases):
        tensors = {n: torch.from_numpy(vectors[f"{i:02}/{n}"]).double() for n in ("x", "offset", "mask", "weight")}
        layer = ModulatedDeformConv2dPack(
            *(case["c"], case["co"]), *(tuple(case[n]) for n in "kspd"), case["g"], case["dg"], bias=case["bias"]
        ).double()
        layer.weight.data = tensors["weight"]
        if layer.bias is not None:
            layer.bias.data = torch.from_numpy(vectors[f"{i:02}/bias"]).double()
        # mmcv: offsets are the first two thirds of conv_offset's channels, and a sigmoid of the last is the mask.
        prediction = torch.cat([tensors["offset"], tensors["mask"].logit()], 1)
        layer.conv_offset = Predicts(prediction)  # type: ignore[assignment]  # it stands in for a convolution
        expected = torch.from_numpy(vectors[f"{i:02}/f64/out"])
        torch.testing.assert_close(layer(tensors["x"]), expected, rtol=1e-10, atol=1e-10)


def test_a_pack_prints_what_makes_it_differ() -> None:
    layer = ModulatedDeformConv2dPack(8, 12, 3, padding=1, groups=2, deform_groups=4, bias=False)
    assert repr(layer).splitlines()[1].strip() == (
        "8, 12, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2, bias=False, deform_groups=4"
    )
    assert "deform_groups" not in repr(DeformConv2dPack(8, 12, 3))


def test_numpys_ints_are_ints() -> None:
    layer = ModulatedDeformConv2dPack(np.int64(8), np.int64(8), np.int64(3), deform_groups=np.int64(2))  # type: ignore[arg-type]
    assert repr(layer) == repr(ModulatedDeformConv2dPack(8, 8, 3, deform_groups=2))


@pytest.mark.parametrize("pack", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_a_pack_names_an_input_without_a_batch(pack: type[DeformConv2dPack]) -> None:
    with pytest.raises(ValueError, match=r"^input: expected \[N, 8, H, W\], got shape \[8, 9, 9\]$"):
        pack(8, 8, 3)(torch.rand(8, 9, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 3), "in_channels: expected an int of at least 1, got 0"),
        ((8, -8, 3), "out_channels: expected an int of at least 1, got -8"),
        (("8", 8, 3), "in_channels: expected an int of at least 1, got '8'"),
        ((8.0, 8, 3), "in_channels: expected an int of at least 1, got 8.0"),
        ((8, 8, None), "kernel_size: expected an int or a pair of ints of at least 1, got None"),
        ((8, 8, 3.0), "kernel_size: expected an int or a pair of ints of at least 1, got 3.0"),
        ((8, 8, True), "kernel_size: expected an int or a pair of ints of at least 1, got True"),
        ((8, 8, (3,)), r"kernel_size: expected an int or a pair of ints of at least 1, got \(3,\)"),
        ((8, 8, torch.ones(2)), "kernel_size: expected an int or a pair of ints .*"),
        ((8, 8, 3, 0), "stride: expected an int or a pair of ints of at least 1, got 0"),
        ((8, 8, 3, 1, "same"), "padding: expected an int or a pair of ints of at least 0, got 'same'"),
        ((8, 8, 3, 1, -1), "padding: expected an int or a pair of ints of at least 0, got -1"),
        ((8, 8, 3, 1, 1, (1, 0)), r"dilation: expected an int or a pair of ints of at least 1, got \(1, 0\)"),
        ((8, 6, 3, 1, 1, 1, 4), "groups: expected a divisor of out_channels=6, got 4"),
        ((8, 8, 3, 1, 1, 1, "2"), "groups: expected a divisor of in_channels=8, got '2'"),
        ((8, 8, 3, 1, 1, 1, 1, 3), "deform_groups: expected a divisor of in_channels=8, got 3"),
        ((8, 8, 3, 1, 1, 1, 1, None), "deform_groups: expected a divisor of in_channels=8, got None"),
    ],
    ids=str,
)
def test_a_wrong_argument_gets_one_line_with_its_name(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        ModulatedDeformConv2dPack(*arguments)


@pytest.mark.parametrize("pack", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_packs_predict_in_float32_within_autocast(pack: type[DeformConv2dPack]) -> None:
    layer, input = pack(8, 8, 3, padding=1), torch.rand(1, 8, 6, 6)
    torch.nn.init.normal_(layer.conv_offset.weight)
    expected = layer.predict(input)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        offset, mask = layer.predict(input)
        assert layer(input).dtype == torch.bfloat16
        assert layer(input.bfloat16()).dtype == torch.bfloat16  # as it comes from the layer before
    torch.testing.assert_close(offset, expected[0])
    torch.testing.assert_close(mask, expected[1])


@pytest.mark.parametrize("pack", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_packs_tell_their_outputs_shape_on_the_meta_device(pack: type[DeformConv2dPack]) -> None:
    with torch.device("meta"):
        output = pack(8, 12, 3, stride=2, padding=1)(torch.rand(2, 8, 9, 7))
    assert output.is_meta
    assert output.shape == (2, 12, 5, 4)
