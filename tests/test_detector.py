from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from torchdcn import models
from torchdcn.detections import COCO_CLASS_NAMES
from torchdcn.detector import Detector
from torchdcn.images import fit_size
from torchdcn.models.weights import save_weights
from torchdcn.nn import ModulatedDeformConv2dPack
from torchdcn.nn.layout import channels_last

if TYPE_CHECKING:
    from collections.abc import Callable


class BrightSpot(nn.Module):
    """A detector by the convention: finds the bounding box of all pixels above one half."""

    def __init__(self, num_classes: int = 3, masks: bool = True, min_size: Any = 64, max_size: int = 100) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.masks = masks
        self.settings = type("Settings", (), {"min_size": min_size, "max_size": max_size})()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += images
        return [self.find(image) for image in images]

    def find(self, image: Tensor) -> dict[str, Tensor]:
        bright = image.mean(0) > 0.5
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        box = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1.0])
        found = {
            "boxes": torch.stack([box, box + 1]),
            "scores": torch.tensor([0.9, 0.2]),
            "labels": torch.tensor([1, 0]),
        }
        return {**found, "masks": bright.float().expand(2, 1, -1, -1)} if self.masks else found


def scene() -> np.ndarray:
    """A white square at x 80..140, y 30..90 of a black 120 x 180 picture."""
    image = np.zeros((120, 180, 3), np.uint8)
    image[30:90, 80:140] = 255
    return image


def test_boxes_and_masks_come_back_at_the_pictures_own_size() -> None:
    found = Detector(BrightSpot())(scene())
    assert found.image_size == (120, 180)
    np.testing.assert_allclose(found.boxes[0], [80, 30, 140, 90], atol=2)
    assert found.masks is not None
    assert found.masks.shape == (2, 120, 180)
    truth = scene()[:, :, 0] > 0
    assert (found.masks[0] & truth).sum() / (found.masks[0] | truth).sum() > 0.95
    assert found.class_names == ("class 0", "class 1", "class 2")


def test_our_models_are_given_the_size_that_they_would_resize_to() -> None:
    model = models.create_model("faster_rcnn_r18_fpn", min_size=(48, 64), max_size=100)
    for height, width in ((120, 180), (180, 120), (77, 333), (1, 9)):
        expected = model.transform.size_for(height, width)
        assert fit_size(height, width, model.settings.min_size, model.settings.max_size) == expected


@pytest.mark.parametrize("min_size", [64, (32, 64)])
def test_the_model_sees_opencvs_resize_of_the_uint8_picture_at_scale_1(min_size: Any) -> None:
    model = BrightSpot(min_size=min_size)
    image = np.random.default_rng(0).integers(100, 256, (120, 180, 3), dtype=np.uint8)
    Detector(model)(image)
    expected = torch.from_numpy(cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR)).permute(2, 0, 1) / 255
    assert torch.equal(model.seen[0], expected)


def test_every_kind_of_picture_gives_the_same_and_lists_give_lists(tmp_path: Path) -> None:
    image = scene()
    file = tmp_path / "scene.png"
    Image.fromarray(image).save(file)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    detector = Detector(BrightSpot())
    alone = detector(image)
    kinds: list[Any] = [str(file), file, Image.open(file), image, tensor, tensor / 255]
    together = detector(kinds)
    assert len(together) == len(kinds)
    for found in [*together, *detector(tuple(kinds))]:
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.masks, alone.masks)
    assert detector([]) == []


# How a camera stores an upright picture under each EXIF orientation.
STORED = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 3),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_turns_the_detections_with_the_picture(orientation: int, tmp_path: Path) -> None:
    file = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](scene()))).save(file, exif=exif, quality=95)
    detector = Detector(BrightSpot())
    for found in (detector(file), detector(Image.open(file))):
        assert found.image_size == (120, 180)
        np.testing.assert_allclose(found.boxes[0], [80, 30, 140, 90], atol=2)


def test_only_scores_above_the_threshold_are_kept() -> None:
    assert len(Detector(BrightSpot())(scene())) == 2
    detector = Detector(BrightSpot(), score_threshold=0.2)
    assert len(detector(scene())) == 1
    detector.score_threshold = 0.95
    nothing = detector(scene())
    assert nothing.masks is not None
    assert nothing.masks.shape == (0, 120, 180)
    assert Detector(BrightSpot(masks=False))(scene()).masks is None


def test_names_and_ids_are_the_models_else_cocos_for_80_classes() -> None:
    model = BrightSpot()
    model.class_names, model.category_ids = ("a", "b", "c"), (4, 5, 9)  # type: ignore[assignment]
    found = Detector(model)(scene())
    assert found.class_names == ("a", "b", "c")
    assert found.to_coco(1)[0]["category_id"] == 5
    coco = Detector(BrightSpot(num_classes=80))(scene())
    assert coco.class_names == COCO_CLASS_NAMES
    assert coco.to_coco(1)[0]["category_id"] == 2


def test_cocos_names_are_those_of_its_annotations() -> None:
    file = Path(__file__).parents[1].parent / "shared" / "data" / "coco_sample" / "annotations" / "instances_val.json"
    if not file.exists():
        pytest.skip("there is no sample of COCO beside the project")
    categories = sorted(json.loads(file.read_text())["categories"], key=lambda category: category["id"])
    detector = Detector(BrightSpot(num_classes=80))
    assert detector.class_names == tuple(category["name"] for category in categories)
    assert detector.category_ids == tuple(category["id"] for category in categories)


def test_the_model_is_in_eval_mode_at_every_call() -> None:
    model = BrightSpot()
    detector = Detector(model.train())
    model.train()
    detector(scene())
    assert not model.training


def test_a_double_precision_model_gets_double_pictures() -> None:
    model = BrightSpot().double()
    Detector(model)(scene())
    assert model.seen[0].dtype == torch.float64


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="score_threshold"):
        Detector(BrightSpot(), score_threshold=1.5)
    with pytest.raises(ValueError, match="weights"):
        Detector(BrightSpot(), weights="some.safetensors")
    with pytest.raises(ValueError, match="device: 'gpu' cannot be used here"):
        Detector(BrightSpot(), device="gpu")
    with pytest.raises(TypeError, match="model_name_or_model"):
        Detector(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'mask_rcnn_r18_fpn'"):
        Detector("mask_rcnn_r18_fpm")


def test_a_name_without_weights_warns_once_and_runs_at_the_pictures_size() -> None:
    with pytest.warns(UserWarning, match="random weights") as caught:
        detector = Detector("mask_rcnn_r18_fpn", score_threshold=0.0, device="cpu")
    assert len([w for w in caught if "random weights" in str(w.message)]) == 1
    detector.model.roi_heads.detections_per_img = 3  # type: ignore[union-attr]
    found = detector(scene())
    assert 0 < len(found) <= 3
    assert found.masks is not None
    assert found.masks.shape[1:] == (120, 180)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [180, 120, 180, 120]).all()


def test_weights_bring_names_ids_and_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.create_model("faster_rcnn_r18_fpn", num_classes=2, min_size=64, max_size=96)
    model.class_names, model.category_ids = ("cat", "dog"), (3, 8)
    save_weights(model, tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = Detector("faster_rcnn_r18_fpn", weights=tmp_path / "w.safetensors", score_threshold=0.0)
    assert detector.class_names == ("cat", "dog")
    found = detector(scene())
    assert {r["category_id"] for r in found.to_coco(1)} <= {3, 8}
    again = Detector(model, score_threshold=0.05)(scene())
    np.testing.assert_allclose(again.scores[:10], found.above(0.05).scores[:10], atol=1e-4)


SMALL: dict[str, Any] = {
    "fpn_channels": 32,
    "box_head_channels": 32,
    "mask_head_channels": (8,),
    "rpn_post_nms_top_n_test": 100,
    "box_detections_per_img": 20,
    "min_size": 64,
    "max_size": 96,
}


def small_model(name: str = "mask_rcnn_r18_fpn_mdconv_c3-c5") -> Any:
    """A model whose samples have moved, and that finds something everywhere."""
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=3, box_score_thresh=0.0, **SMALL)
    for name, parameter in model.named_parameters():
        if "conv_offset" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def same(found: Any, other: Any) -> None:
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(other, name))


def test_a_list_gives_to_the_bit_what_its_pictures_give_one_by_one() -> None:
    rng = np.random.default_rng(0)
    sizes = ((60, 90), (60, 90), (96, 64), (33, 90))
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    detector = Detector(small_model(), score_threshold=0)
    for found, picture in zip(detector(pictures), pictures, strict=True):
        assert len(found)
        same(found, detector(picture))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 700), (500, 2), (31, 33)])
def test_pictures_smaller_than_a_stride_and_long_ones_are_searched(size: tuple[int, int]) -> None:
    found = Detector(small_model(), score_threshold=0)(np.full((*size, 3), 200, np.uint8))
    height, width = found.image_size
    assert (height, width) == size
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height, width, height]).all()
    assert found.masks is not None
    assert found.masks.shape[1:] == size
    for result in found.to_coco(1)[:3]:
        assert result["segmentation"]["size"] == list(size)


def test_bf16_computes_in_sixteen_bits_and_keeps_weights_and_boxes_in_thirty_two() -> None:
    model = small_model()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    plain = Detector(model, score_threshold=0)(image)
    seen = []
    model.backbone.body.layer4[0].conv2.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    mixed = Detector(model, score_threshold=0, amp="bf16")(image)
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < np.abs(np.sort(mixed.scores)[-20:] - np.sort(plain.scores)[-20:]).max() < 0.01
    assert (mixed.boxes % 1 != 0).any()
    assert (mixed.boxes != torch.from_numpy(mixed.boxes).bfloat16().float().numpy()).any()
    same(Detector(model, score_threshold=0, amp="none")(image), plain)


def test_mixed_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="amp: expected one of none, bf16, fp16, got 'half'"):
        Detector(BrightSpot(), amp="half")
    with pytest.raises(ValueError, match="amp: fp16 needs a CUDA device, got cpu; use bf16 here"):
        Detector(BrightSpot(), amp="fp16")


def copies(function: Callable[[], Any]) -> list[tuple[int, ...]]:
    """The shapes of the 4-D tensors that are copied on the way, for another layout or without gaps."""
    with torch.inference_mode():
        function()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            function()
    found = []
    for event in profiler.events():
        # Of maps of a few pixels, torch convolves a matrix of all windows, and copies the result.
        small = event.cpu_parent is not None and event.cpu_parent.name == "aten::_slow_conv2d_forward"
        if event.name == "aten::copy_" and len(event.input_shapes[0]) == 4 and not small:
            found.append(tuple(event.input_shapes[0]))
    return found


@pytest.mark.parametrize("name", ["mask_rcnn_r18_fpn_mdconv_c3-c5", "mask_rcnn_r50_fpn_mdconv_c3-c5"])
def test_features_are_channels_last_from_the_image_to_the_proposals_and_no_layer_converts_them(name: str) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        model: Any = Detector(name, device="cpu").model
    layouts = []
    for module in (*model.backbone.modules(), *model.rpn.head.modules()):
        if not list(module.children()) and not isinstance(module, LastLevelMaxPool):
            module.register_forward_hook(lambda _, __, output: layouts.append(output))
    image = torch.rand(1, 3, 96, 96).contiguous(memory_format=torch.channels_last)  # P6 is larger than one pixel
    copied = copies(lambda: model.rpn.head(list(model.backbone(image).values())))
    assert len(layouts) > 40
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in layouts)
    # Offsets are a slice of what predicts them: copied without gaps, in their layout.
    layers = sum(isinstance(module, ModulatedDeformConv2dPack) for module in model.modules())
    assert [shape[1] for shape in copied] == [18] * layers


def test_in_a_whole_detection_no_feature_map_is_converted() -> None:
    detector = Detector(channels_last(small_model()), score_threshold=0)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    copied = copies(lambda: detector(picture))
    assert copied
    # The picture itself, offsets (see above), and the regions that the mask head sees.
    assert [shape for shape in copied if shape[1] not in (3, 18) and shape[2:] != (14, 14)] == []


def test_plain_channels_last_would_copy_every_deformable_weight() -> None:
    """So the test above sees such copies."""
    layer = ModulatedDeformConv2dPack(32, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    image = torch.rand(1, 32, 20, 20).contiguous(memory_format=torch.channels_last)
    assert (32, 32, 3, 3) in copies(lambda: layer(image))
