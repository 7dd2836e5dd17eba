import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_conv2d

from .cases import (
    CASES,
    FAR_CASES,
    NAMES,
    Case,
    assert_like,
    each_backend,
    each_case,
    each_instruction_set,
    gradients,
    ours,
    skip_without,
    torchvisions,
)


@each_backend
@pytest.mark.parametrize("case", CASES + FAR_CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_output_and_gradients_equal_torchvisions(case: Case, name: str) -> None:
    with backend(name):
        output, found, cotangent = gradients(ours, case, case.tensors())
    expected_output, expected, _ = gradients(torchvisions, case, case.tensors(), cotangent)
    assert_like(output, expected_output, 1e-13)
    for argument in expected:
        assert_like(found[argument], expected[argument], 1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)],
    ids=["float32", "bfloat16", "float16"],
)
@each_case
def test_kernels_in_lower_precision_stay_near_float64(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    tensors = case.tensors(dtype)
    exact = [None if t is None else t.double() for t in tensors]
    output, found, cotangent = gradients(ours, case, tensors)
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, case, exact, cotangent.double())
    assert output.dtype == dtype
    assert_like(output, expected_output, tolerance)
    for argument in expected:
        assert found[argument].dtype == dtype
        assert_like(found[argument], expected[argument], tolerance)


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_offset_and_mask_may_stay_float32_beside_16_bit_features(dtype: torch.dtype, name: str) -> None:
    case = CASES[0]
    input, offset, mask, weight = case.tensors(torch.float32)
    assert input is not None
    assert weight is not None
    tensors = [input.to(dtype), offset, mask, weight.to(dtype)]
    exact = [None if t is None else t.double() for t in tensors]
    with backend(name):
        output, found, cotangent = gradients(ours, case, tensors)
    expected_output, expected, _ = gradients(torchvisions, case, exact, cotangent.double())
    assert_like(output, expected_output, 8e-3)
    assert found["offset"].dtype == torch.float32
    assert_like(found["offset"], expected["offset"], 1e-5)


@each_backend
@pytest.mark.parametrize("spacing", [1.0, 0.5], ids=["integer", "half-integer"])
def test_offsets_on_the_grid_have_torchvisions_gradients(spacing: float, name: str) -> None:
    case = replace(CASES[0], spread=0.0)
    tensors = case.tensors()
    offset = tensors[1]
    assert offset is not None
    steps = torch.randint(-6, 7, offset.shape, generator=torch.Generator().manual_seed(2))
    tensors[1] = (steps * spacing).double()
    with backend(name):
        output, found, cotangent = gradients(ours, case, tensors)
    expected_output, expected, _ = gradients(torchvisions, case, tensors, cotangent)
    assert_like(output, expected_output, 1e-13)
    for argument in expected:
        assert_like(found[argument], expected[argument], 1e-13)


VECTORS = np.load(Path(__file__).parent / "mmcv_deform_conv2d.npz")


@each_backend
@pytest.mark.parametrize("vector", json.loads(str(VECTORS["cases"])), ids=lambda vector: vector["key"])
def test_equals_what_mmcv_computed(vector: dict[str, object], name: str) -> None:
    def read(tensor: str) -> Tensor | None:
        key = f"{vector['key']}/{tensor}"
        return torch.from_numpy(VECTORS[key]).double() if key in VECTORS else None

    tensors = [read(tensor) for tensor in ("x", "offset", "mask", "weight")]
    case = Case(
        str(vector["key"]), stride=tuple(vector["s"]), padding=tuple(vector["p"]), dilation=tuple(vector["d"])  # type: ignore[arg-type]
    )  # fmt: skip
    bias = read("bias") if vector["bias"] else None
    with backend(name):
        output, found, _ = gradients(ours, case, tensors, read("grad_out"))
    if bias is not None:
        output = output + bias.reshape(-1, 1, 1)
    expected = {"input": read("gx"), "mask": read("gmask"), "weight": read("gw")}
    if int(vector["key"][-2:]) not in (27, 28):  # type: ignore[index]  # on kinks mmcv's offset gradient differs: mmdet.md
        expected["offset"] = read("goff")
    out = read("out")
    assert out is not None
    assert_like(output, out, 1e-6)  # mmcv floors in float32
    for argument, gradient in expected.items():
        if gradient is not None:
            assert_like(found[argument], gradient, 1e-6)


@each_backend
def test_channels_last_in_gives_the_same_numbers_channels_last(name: str) -> None:
    case = Case("", C=24, Co=32)
    tensors = case.tensors(torch.float32)
    with backend(name):
        output, found, cotangent = gradients(ours, case, tensors)
        last = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in tensors]
        cotangent = cotangent.contiguous(memory_format=torch.channels_last)
        output_last, found_last, _ = gradients(ours, case, last, cotangent)
    assert output_last.is_contiguous(memory_format=torch.channels_last)
    assert_like(output_last, output, 1e-6)
    for argument in found:
        assert_like(found_last[argument], found[argument], 1e-6)


def test_expanded_and_strided_inputs_give_the_same_numbers() -> None:
    case = Case("", N=3, C=4)
    input, offset, mask, weight = case.tensors()
    assert input is not None
    assert offset is not None
    assert weight is not None
    expanded = input[:1].expand(3, -1, -1, -1)
    strided = torch.stack([offset, offset], -1)[..., 0]
    flipped = weight.transpose(2, 3)
    expected = ours(case, [expanded.clone(), offset, mask, flipped.clone()])
    torch.testing.assert_close(ours(case, [expanded, strided, mask, flipped]), expected, rtol=0, atol=0)


@each_backend
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(name: str) -> None:
    case = Case("", N=0)
    with backend(name):
        output, found, _ = gradients(ours, case, case.tensors())
    assert output.shape == (0, 6, 9, 11)
    assert found["offset"].shape == (0, 18, 9, 11)
    torch.testing.assert_close(found["weight"], torch.zeros(6, 8, 3, 3, dtype=torch.float64))


@each_backend
@pytest.mark.parametrize("coordinate", [0, 1], ids=["dy", "dx"])
@pytest.mark.parametrize("other", [0.0, 1e9], ids=["on the map", "far outside"])
def test_a_nan_offset_gives_nan_where_it_is_used_and_nowhere_else(name: str, coordinate: int, other: float) -> None:
    case = Case("", N=1)
    tensors = case.tensors(torch.float32)
    offset = tensors[1]
    assert offset is not None
    offset[0, 8 + coordinate, 3, 4] = math.nan
    offset[0, 9 - coordinate, 3, 4] = other
    with backend(name):
        output, found, _ = gradients(ours, case, tensors)
    used = torch.zeros(output.shape, dtype=torch.bool)
    used[:, :, 3, 4] = True
    assert torch.equal(output.isnan(), used)
    assert found["offset"][0, 8:10, 3, 4].isnan().all()
    assert found["offset"].isnan().sum() == 2
    assert found["mask"].isnan().sum() == 1
    assert not found["input"].isnan().any()
    assert found["weight"].isnan().any()


@each_backend
def test_a_nan_mask_gives_nan_where_it_is_used(name: str) -> None:
    case = Case("", N=1)
    tensors = case.tensors(torch.float32)
    mask, offset = tensors[2], tensors[1]
    assert mask is not None
    assert offset is not None
    mask[0, 4, 3, 4] = math.nan
    mask[0, 2, 5, 6] = math.nan
    offset[0, 4, 5, 6] = 1e9  # far outside, yet NaN
    with backend(name):
        output = ours(case, tensors)
    used = torch.zeros(output.shape, dtype=torch.bool)
    used[:, :, 3, 4] = used[:, :, 5, 6] = True
    assert torch.equal(output.isnan(), used)


@each_backend
def test_an_infinite_mask_gives_what_torchvision_gives(name: str) -> None:
    case = Case("", N=1, spread=0.0)
    tensors = case.tensors()
    offset, mask = tensors[1], tensors[2]
    assert offset is not None
    assert mask is not None
    offset[:, :, 4:] += 0.25  # on grid lines above, between them below
    mask[0, 4, 2, 4] = mask[0, 3, 6, 4] = math.inf
    with backend(name):
        torch.testing.assert_close(ours(case, tensors), torchvisions(case, tensors), equal_nan=True)


@each_backend
@pytest.mark.parametrize("value", [math.inf, -math.inf, 3e38, -1e12], ids=str)
def test_an_infinite_or_huge_offset_contributes_nothing(name: str, value: float) -> None:
    case = Case("", N=1)
    tensors = case.tensors(torch.float32)
    offset, mask = tensors[1], tensors[2]
    assert offset is not None
    assert mask is not None
    offset[0, 8, 3, 4] = value
    with backend(name):
        output, found, cotangent = gradients(ours, case, tensors)
        offset[0, 8, 3, 4], mask[0, 4, 3, 4] = 0.0, 0.0
        expected, expected_found, _ = gradients(ours, case, tensors, cotangent)
    assert_like(output, expected, 1e-6)
    assert found["offset"][0, 8:10, 3, 4].tolist() == [0, 0]
    assert found["mask"][0, 4, 3, 4] == 0
    assert_like(found["input"], expected_found["input"], 1e-6)
    assert_like(found["weight"], expected_found["weight"], 1e-6)


@each_backend
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_an_infinity_stays_in_its_group(width: int, name: str) -> None:
    """Narrow groups share vectors, where a product with zero would spread it."""
    case = Case("narrow", C=32, Co=32, groups=32 // width, N=1)
    tensors = case.tensors(torch.float32)
    assert tensors[0] is not None
    tensors[0][:, 5] = math.inf
    with backend(name):
        output, found, _ = gradients(ours, case, tensors)
    group = 5 // width
    mine = torch.arange(32) // width == group
    assert output[:, ~mine].isfinite().all()
    assert not output[:, mine].isfinite().all()
    assert found["weight"][~mine].isfinite().all()
    assert found["input"][:, ~mine].isfinite().all()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("C", [3, 33])
def test_an_infinite_weight_of_the_last_channel_gives_no_nan(C: int, dtype: torch.dtype, name: str) -> None:
    """AVX512-BF16 multiplies channels by twos: what an odd one is paired with is zero, and so is that one's weight."""
    input = torch.ones(1, C, 5, 5, dtype=dtype)
    weight = torch.ones(20, C, 1, 1, dtype=dtype)
    weight[4, -1] = math.inf
    with backend(name):
        output = deform_conv2d(input, torch.zeros(1, 2, 5, 5), weight)
    expected = torch.full((1, 20, 5, 5), float(C), dtype=dtype)
    expected[:, 4] = math.inf
    assert torch.equal(output, expected)


@each_backend
def test_a_pixel_off_the_map_counts_as_zero_even_beside_infinity(name: str) -> None:
    input = torch.zeros(1, 1, 3, 3)
    input[0, 0, 0, 0] = math.inf
    offset = torch.zeros(1, 2, 3, 3)
    offset[0, 1, 2, 2] = 0.5  # half off the right border
    with backend(name):
        output = deform_conv2d(input, offset, torch.ones(1, 1, 1, 1))
    assert output[0, 0, 2, 2] == 0


def test_kernels_give_the_same_bits_on_any_number_of_threads() -> None:
    case = Case("", C=40, Co=72, size=(33, 21))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            with backend("cpp"):
                output, found, _ = gradients(ours, case, case.tensors(torch.float32))
            results.append([output, *found.values()])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 1)], ids=str)
def test_each_gradient_can_be_had_alone(wanted: tuple[int, ...]) -> None:
    case = CASES[0]
    tensors = case.tensors()
    _, expected, cotangent = gradients(ours, case, tensors)
    leaves = [t.clone().requires_grad_(bool(w)) for t, w in zip(tensors, wanted, strict=True) if t is not None]
    ours(case, list(leaves)).backward(cotangent)
    for name, leaf, is_wanted in zip(NAMES, leaves, wanted, strict=True):
        if is_wanted:
            assert leaf.grad is not None
            assert_like(leaf.grad, expected[name], 1e-13)
        else:
            assert leaf.grad is None


@each_instruction_set
def test_every_instruction_set_gives_the_reference_numbers(isa: str) -> None:
    skip_without(isa)
    chosen = "instruction_set_is or equal_torchvisions or lower_precision or infinite_weight"
    here = str(Path(__file__).parent)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, here],
        env=os.environ | {"TORCHDCN_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
