import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from torchdcn.ops import backend, deform_roi_pool, sampling

from .cases import assert_like, each_instruction_set, skip_without
from .roi_cases import BOXES, CASES, Case, each_backend, each_case, gradients, one_by_one, ours, torchvisions

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors"
PLAIN = [case for case in CASES if not case.deformed]


def assert_all_like(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for argument in expected:
        assert_like(found[argument], expected[argument], tolerance)


@each_backend
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name.replace(" ", "-"))
def test_without_offsets_it_is_torchvisions_roi_align(case: Case, name: str) -> None:
    with backend(name):
        output, found, cotangent = gradients(ours, case, case.tensors())
    expected_output, expected, _ = gradients(torchvisions, case, case.tensors(), cotangent)
    assert_like(output, expected_output, 1e-13)
    assert_all_like(found, expected, 1e-13)


@pytest.mark.parametrize("case", [c for c in CASES if c.sampling_ratio < 9 and c.C < 9], ids=lambda case: case.name)
def test_the_reference_is_the_formula(case: Case) -> None:
    with backend("reference"):
        output, found, cotangent = gradients(ours, case, case.tensors())
    expected_output, expected, _ = gradients(one_by_one, case, case.tensors(), cotangent)
    assert_like(output, expected_output, 1e-13)
    assert_all_like(found, expected, 1e-12)


@each_case
def test_kernels_agree_with_the_reference(case: Case) -> None:
    output, found, cotangent = gradients(ours, case, case.tensors())
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, case, case.tensors(), cotangent)
    assert_like(output, expected_output, 1e-13)
    assert_all_like(found, expected, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)],
    ids=["float32", "bfloat16", "float16"],
)
@each_case
def test_kernels_agree_with_float64_in_less_precision(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    tensors = case.tensors(dtype)
    exact = [None if t is None else t.double() for t in tensors]
    rounded_boxes = Case(**{**vars(case), "boxes": case.rows().float().double()})
    output, found, cotangent = gradients(ours, case, tensors)
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, rounded_boxes, exact, cotangent.double())
    assert output.dtype == dtype
    assert_like(output, expected_output, tolerance)
    assert all(g.dtype == dtype for g in found.values())
    assert_all_like(found, expected, tolerance)


@each_backend
def test_equals_what_mmcv_computed(name: str) -> None:
    file = VECTORS / "op_deform_roi_pool.npz"
    if not file.is_file():
        pytest.skip("mmcv's vectors are not beside the project (../shared/vectors)")
    vectors = np.load(file)
    boxes = torch.from_numpy(vectors["rois"]).double()

    def read(key: str) -> Tensor:
        return torch.from_numpy(vectors[key]).double()

    for case in json.loads((VECTORS / "op_deform_roi_pool_cases.json").read_text()):
        key = case["name"]
        leaves = [read("x").requires_grad_()]
        leaves += [read(f"{key}/offset").requires_grad_()] if case["offset"] else []
        numbers = case["spatial_scale"], case["sampling_ratio"], float(np.float32(case["gamma"]))  # mmcv's is float32
        with backend(name):
            output = deform_roi_pool(
                leaves[0], boxes, tuple(case["size"]), leaves[1] if case["offset"] else None, None, *numbers
            )
        found = torch.autograd.grad(output, leaves, read(f"{key}/grad_out"))
        assert_like(output.detach(), read(f"{key}/f64/out"), 1e-13)
        assert_like(found[0], read(f"{key}/f64/gx"), 1e-13)
        if case["offset"]:
            assert_like(found[1], read(f"{key}/py64_autograd/goff"), 1e-13)


@each_backend
def test_without_offsets_it_is_mmcvs_roi_align_too(name: str) -> None:
    file = VECTORS / "op_roi_align.npz"
    if not file.is_file():
        pytest.skip("mmcv's vectors are not beside the project (../shared/vectors)")
    vectors, cases = np.load(file), json.loads((VECTORS / "op_roi_align_cases.json").read_text())
    aligned = [case for case in cases if case["aligned"] and case["mode"] == "avg"]
    assert len(aligned) == 6

    def read(key: str) -> Tensor:
        return torch.from_numpy(vectors[key]).double()

    for case in aligned:
        key, input = case["name"], read("x").requires_grad_()
        numbers = {"spatial_scale": case["spatial_scale"], "sampling_ratio": case["sampling_ratio"]}
        with backend(name):
            output = deform_roi_pool(input, read("rois"), tuple(case["size"]), **numbers)
        assert_like(output.detach(), read(f"{key}/f64/out"), 1e-13)
        assert_like(torch.autograd.grad(output, input, read(f"{key}/grad_out"))[0], read(f"{key}/f64/gx"), 1e-13)


def at(y: float, x: float) -> Tensor:  # [1, 5]
    """A box of a pixel, whose one sample is at (y, x)."""
    return torch.tensor([[0, x, y, x + 1, y + 1]], dtype=torch.float64)


def sample(input: Tensor, y: float, x: float) -> tuple[float, Tensor]:
    """Value, and derivatives by (x, y)."""
    offset = torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    value = deform_roi_pool(input, at(y, x), 1, offset, gamma=1.0)
    value.backward()  # type: ignore[no-untyped-call]  # torch's own
    assert offset.grad is not None
    return float(value.detach()), offset.grad.flatten()


@each_backend
def test_values_and_derivatives_at_the_border_are_those_of_the_moved_sample(name: str) -> None:
    input = torch.arange(12, dtype=torch.float64).reshape(1, 1, 3, 4).square()
    f = input[0, 0]
    zero = [0.0, 0.0]
    with backend(name):
        for y in (-1.0, -0.25):
            value, by = sample(input, y, 1.5)
            assert value == (f[0, 1] + f[0, 2]) / 2
            assert by.tolist() == [f[0, 2] - f[0, 1], 0.0]
        for y in (2.0, 2.5, 3.0):
            value, by = sample(input, y, 1.5)
            assert value == (f[2, 1] + f[2, 2]) / 2
            assert by.tolist() == [f[2, 2] - f[2, 1], 0.0]
        value, by = sample(input, 0.0, 0.0)  # on the border still: the derivative is the one from within
        assert value == f[0, 0]
        assert by.tolist() == [f[0, 1] - f[0, 0], f[1, 0] - f[0, 0]]
        value, by = sample(input, 1.0, 4.0)
        assert (value, by.tolist()) == (f[1, 3], [0.0, f[2, 3] - f[1, 3]])
        for y, x in ((-1.01, 1.0), (3.01, 1.0), (1.0, -1.01), (1.0, 4.01)):
            value, by = sample(input, y, x)
            assert (value, by.tolist()) == (0.0, zero)


@each_backend
def test_boxes_may_come_as_a_list_for_each_image(name: str) -> None:
    case = CASES[0]
    input, offset, mask = case.tensors()
    assert input is not None
    listed = [BOXES[BOXES[:, 0] == n][:, 1:] for n in range(2)]
    sorted_rows = torch.cat([BOXES[BOXES[:, 0] == n] for n in range(2)])
    with backend(name):
        found = deform_roi_pool(input, listed, case.bins, offset, mask, 0.37)
        expected = deform_roi_pool(input, sorted_rows, case.bins, offset, mask, 0.37)
        none = deform_roi_pool(input, [listed[0][:0], listed[1][:0]], case.bins)
    assert torch.equal(found, expected)
    assert none.shape == (0, 5, 3, 2)


@each_backend
@pytest.mark.parametrize("N", [2, 0], ids=["images", "no image"])
def test_no_boxes_give_an_empty_output_and_zero_gradients(name: str, N: int) -> None:
    case = Case("", N=N, boxes=BOXES[:0])
    with backend(name):
        output, found, _ = gradients(ours, case, case.tensors())
    assert output.shape == (0, 5, 3, 2)
    assert torch.equal(found["input"], torch.zeros(N, 5, 11, 15, dtype=torch.float64))
    assert found["offset"].shape == (0, 2, 3, 2)
    assert found["mask"].shape == (0, 1, 3, 2)


@each_backend
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_a_nan_offset_gives_nan_in_its_bin_and_nowhere_else(name: str, sampling_ratio: int) -> None:
    case = Case("", boxes=BOXES[:4], sampling_ratio=sampling_ratio)
    for coordinate, other in ((0, 0.0), (1, 0.0), (0, 1e9)):
        tensors = case.tensors(torch.float32)
        assert tensors[1] is not None
        tensors[1][1, coordinate, 2, 1] = math.nan
        tensors[1][1, 1 - coordinate, 2, 1] = other
        with backend(name):
            output, found, _ = gradients(ours, case, tensors)
        used = torch.zeros(output.shape, dtype=torch.bool)
        used[1, :, 2, 1] = True
        assert torch.equal(output.isnan(), used)
        assert found["offset"][1, :, 2, 1].isnan().all()
        assert found["offset"].isnan().sum() == 2
        assert found["mask"].isnan().sum() == 1
        assert not found["input"].isnan().any()


@each_backend
def test_a_nan_mask_gives_nan_also_where_nothing_is_sampled(name: str) -> None:
    case = Case("", boxes=BOXES[5:8])
    tensors = case.tensors()
    assert tensors[2] is not None
    tensors[2][:, 0, 1, 1] = math.nan
    with backend(name):
        output = ours(case, tensors)
    used = torch.zeros(output.shape, dtype=torch.bool)
    used[:, :, 1, 1] = True
    assert torch.equal(output.isnan(), used)


@each_backend
@pytest.mark.parametrize("value", [math.inf, -math.inf, 3e38, -1e12], ids=str)
def test_an_infinite_or_huge_offset_gives_zero(name: str, value: float) -> None:
    case = Case("", boxes=BOXES[:4])
    tensors = case.tensors(torch.float32)
    assert tensors[1] is not None
    tensors[1][1, 0, 2, 1] = value
    with backend(name):
        output, found, _ = gradients(ours, case, tensors)
    assert (output[1, :, 2, 1] == 0).all()
    assert (found["offset"][1, :, 2, 1] == 0).all()
    assert found["mask"][1, 0, 2, 1] == 0
    assert output.isfinite().all()
    assert all(g.isfinite().all() for g in found.values())


@each_backend
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_boxes_without_size_or_end_are_answered(name: str, sampling_ratio: int) -> None:
    inf, nan = math.inf, math.nan
    rows = [[0, 0, 0, inf, 20], [0, -inf, 0, 10, 20], [0, -inf, -inf, inf, inf], [0, -1e30, -1e30, 1e30, 1e30]]
    rows += [[0, 2, 2, 5, nan], [0, inf, 3, inf, 9], [1, -4e5, -4e5, 4e5, 4e5]]
    case = Case("", boxes=torch.tensor(rows, dtype=torch.float64), sampling_ratio=sampling_ratio, bins=(2, 2))
    tensors = case.tensors()
    with backend(name):
        output, found, cotangent = gradients(ours, case, tensors)
    assert (output[:3] == 0).all()
    assert output[:4].isfinite().all()
    assert output[4:6].isnan().all()
    assert (found["offset"][:3] == 0).all()
    assert not found["input"].isnan().any()
    with backend("reference"):
        expected_output, expected, _ = gradients(ours, case, tensors, cotangent)
    torch.testing.assert_close(output, expected_output, equal_nan=True, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found["input"], expected["input"], rtol=1e-9, atol=1e-14)


@each_backend
def test_an_infinite_pixel_stays_within_the_bins_that_blend_it(name: str) -> None:
    input = torch.zeros(1, 1, 6, 6)
    input[0, 0, 5, 5] = math.inf
    with backend(name):
        output = deform_roi_pool(input, torch.tensor([[0, 0.5, 0.5, 6.5, 6.5]]), 3)
    assert output[0, 0, 2, 2] == math.inf
    assert (output.flatten()[:-1] == 0).all()


def test_the_reference_gives_the_same_whatever_it_takes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES[:3]:
        with backend("reference"):
            expected = gradients(ours, case, case.tensors())
            monkeypatch.setattr(sampling, "BUDGET", 500)
            found = gradients(ours, case, case.tensors())
        torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-13)
        assert_all_like(found[1], expected[1], 1e-13)


def test_kernels_give_the_same_bits_on_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    results: list[list[Tensor]] = []
    try:
        for layout in (torch.contiguous_format, torch.channels_last):
            case = Case("", C=72, size=(33, 21), spatial_scale=0.8, bins=(3, 3))
            tensors = case.tensors(torch.float32)
            assert tensors[0] is not None
            tensors[0] = tensors[0].contiguous(memory_format=layout)
            results.clear()
            for count in (1, 2, 3, 1):
                torch.set_num_threads(count)
                with backend("cpp"):
                    output, found, _ = gradients(ours, case, tensors)
                results.append([output, *found.values()])
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(threads)


@each_instruction_set
def test_every_instruction_set_agrees(isa: str) -> None:
    skip_without(isa)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "kernels_agree", __file__],
        env=os.environ | {"TORCHDCN_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
