"""What torch's counter makes of the operators, forward and backward."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from torchdcn.nn import ModulatedDeformConv2dPack
from torchdcn.ops import deform_conv2d, deform_roi_pool

N, C, CO, SIZE, GROUPS = 2, 8, 12, (6, 7), 2
POSITIONS = N * 3 * 4  # of a stride of 2
VALUES = POSITIONS * C * 9
PRODUCT = 2 * VALUES * CO // GROUPS


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def convolution() -> dict[str, Tensor]:
    shapes = {"input": (N, C, *SIZE), "offset": (N, 36, 3, 4), "weight": (CO, C // GROUPS, 3, 3), "mask": (N, 18, 3, 4)}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def convolve(tensors: dict[str, Tensor]) -> Tensor:
    return deform_conv2d(**tensors, stride=2, padding=1)


def test_a_convolution_counts_as_a_dense_one_and_its_samples() -> None:
    tensors = convolution()
    dense = flops(lambda: torch.nn.functional.conv2d(tensors["input"], tensors["weight"], None, 2, 1, 1, GROUPS))
    assert dense == PRODUCT
    assert flops(lambda: convolve(tensors)) == PRODUCT + 8 * VALUES


@pytest.mark.parametrize(
    ("wanted", "products", "samples"),
    [
        ("input", 1, 1), ("offset", 1, 2), ("mask", 1, 1), ("weight", 1, 1), ("input offset", 1, 3),
        ("input offset mask weight", 2, 5),
    ],
)  # fmt: skip
def test_gradients_count_where_they_are_asked_for(wanted: str, products: int, samples: int) -> None:
    tensors = convolution()
    output = convolve({name: t.requires_grad_(name in wanted.split()) for name, t in tensors.items()})
    assert flops(lambda: output.sum().backward()) == products * PRODUCT + samples * 8 * VALUES


def test_without_a_mask_nothing_is_counted_for_it() -> None:
    tensors = convolution()
    del tensors["mask"]
    output = convolve({name: t.requires_grad_() for name, t in tensors.items()})
    assert flops(lambda: output.sum().backward()) == 2 * PRODUCT + 4 * 8 * VALUES


def test_a_layer_counts_its_offsets_convolution_too() -> None:
    layer, input = ModulatedDeformConv2dPack(8, 16, 3, padding=1), torch.rand(1, 8, 5, 6)
    assert flops(lambda: layer(input)) == 30 * 72 * (2 * 27 + 2 * 16 + 8)


BOXES = torch.tensor([[0, 0.5, 0.5, 8.5, 4.5], [0, 2.5, 2.5, 4.5, 12.5], [0, 3.0, 3.0, 3.0, 3.0]])
SAMPLES = 4 * (4 * 2 + 1 * 5)  # of 2 x 2 bins of 4 x 2 and 1 x 5 pixels, and of none


@pytest.mark.parametrize(("ratio", "samples"), [(3, 3 * 4 * 9), (0, SAMPLES)])
def test_pooling_counts_its_samples_forward_and_backward(ratio: int, samples: int) -> None:
    input = torch.rand(1, 5, 16, 16, requires_grad=True)
    offset, mask = torch.zeros(3, 2, 2, 2, requires_grad=True), torch.ones(3, 1, 2, 2, requires_grad=True)
    pooled = deform_roi_pool(input, BOXES, 2, offset, mask, sampling_ratio=ratio)
    assert flops(lambda: deform_roi_pool(input, BOXES, 2, offset, mask, sampling_ratio=ratio)) == 8 * 5 * samples
    assert flops(lambda: pooled.sum().backward()) == 4 * 8 * 5 * samples
    masked = deform_roi_pool(input.detach(), BOXES, 2, None, mask, sampling_ratio=ratio)
    assert flops(lambda: masked.sum().backward()) == 8 * 5 * samples


def test_pooling_counts_the_samples_of_boxes_in_half_precision() -> None:
    assert flops(lambda: deform_roi_pool(torch.rand(1, 5, 16, 16).half(), BOXES, 2)) == 8 * 5 * SAMPLES
    boxes = BOXES.half()
    assert flops(lambda: deform_roi_pool(torch.rand(1, 5, 16, 16).half(), boxes, 2)) == 8 * 5 * SAMPLES


def test_operators_count_by_name_too() -> None:
    ops, input = torch.ops.torchdcn, torch.rand(1, 5, 16, 16)
    named = {"output_size": (2, 2), "spatial_scale": 1.0, "sampling_ratio": 2, "gamma": 0.1}
    assert flops(lambda: ops.deform_roi_pool(input, BOXES, None, None, **named)) == 8 * 5 * 3 * 4 * 4
    wanted = {"grad_output": torch.rand(3, 5, 2, 2), "input": input, "boxes": BOXES, "offset": None, "mask": None}
    call = lambda: ops.deform_roi_pool_backward(**wanted, **named, output_mask=[True, False, False])  # noqa: E731
    assert flops(call) == 8 * 5 * 3 * 4 * 4


def test_tensors_without_values_count_as_well() -> None:
    with FakeTensorMode():
        tensors, input, boxes = convolution(), torch.rand(1, 5, 16, 16), torch.rand(3, 5)
        assert flops(lambda: convolve(tensors)) == PRODUCT + 8 * VALUES
        assert flops(lambda: deform_roi_pool(input, boxes, 2)) == 8 * 5 * 3 * 4 * 4  # 2 x 2 samples a bin


BEFORE = "import torch.utils.flop_counter as counter, torchdcn"
AFTER = "import torchdcn, torch.utils.flop_counter as counter"


@pytest.mark.parametrize("imports", [BEFORE, AFTER])
def test_the_counter_may_be_imported_before_or_after(imports: str) -> None:
    code = f"{imports}; print(len([f for f in counter.flop_registry if 'torchdcn' in str(f)]))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4\n", "")
