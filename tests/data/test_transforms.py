from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from torchdcn.data import collate, eval_transforms, train_transforms


def sample(boxes: list[list[float]]) -> tuple[tv_tensors.Image, dict[str, object]]:
    masks = torch.zeros(len(boxes), 8, 12, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    image = tv_tensors.Image(torch.arange(8 * 12 * 3, dtype=torch.uint8).reshape(3, 8, 12))
    count = len(boxes)
    return image, {
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(boxes).reshape(-1, 4), format="XYXY", canvas_size=(8, 12)),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(count),
        "area": torch.arange(count).float(),
        "iscrowd": torch.zeros(count, dtype=torch.int64),
        "image_id": 5,
    }


def test_a_flip_moves_image_boxes_and_masks_together() -> None:
    image, target = train_transforms(horizontal_flip=1.0)(*sample([[1.0, 2, 4, 7], [0, 0, 12, 8]]))
    original = sample([])[0]
    assert torch.allclose(image, original.flip(-1).float() / 255)
    assert target["boxes"].tolist() == [[8, 2, 11, 7], [0, 0, 12, 8]]
    for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box


def test_without_a_flip_only_the_range_changes() -> None:
    image, target = train_transforms(horizontal_flip=0.0)(*sample([[1.0, 2, 4, 7]]))
    assert torch.allclose(image, sample([])[0].float() / 255)
    assert target["boxes"].tolist() == [[1, 2, 4, 7]]
    assert target["image_id"] == 5


@pytest.mark.parametrize("make", [train_transforms, eval_transforms])
def test_models_get_plain_tensors(make: object) -> None:
    image, target = make()(*sample([[1.0, 2, 4, 7]]))  # type: ignore[operator]
    assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor
    assert (image.dtype, target["masks"].dtype) == (torch.float32, torch.uint8)


def test_what_belongs_to_an_unusable_box_goes_with_it() -> None:
    _, target = train_transforms(horizontal_flip=0.0)(*sample([[1.0, 2, 4, 7], [3, 3, 3.2, 6], [0, 0, 2, 2]]))
    assert target["labels"].tolist() == [0, 2]
    assert target["area"].tolist() == [0, 2]
    assert len(target["iscrowd"]) == len(target["masks"]) == len(target["boxes"]) == 2


def test_training_leaves_out_what_is_less_than_a_pixel_wide_or_high() -> None:
    boxes = [[1.0, 2, 1.9, 7], [1, 2, 6, 2.9], [1, 2, 2, 3], [1, 2, 4, 7]]
    assert train_transforms(horizontal_flip=0.0)(*sample(boxes))[1]["labels"].tolist() == [2, 3]
    assert eval_transforms()(*sample(boxes))[1]["labels"].tolist() == [0, 1, 2, 3]


def test_evaluation_keeps_every_object() -> None:
    _, target = eval_transforms()(*sample([[1.0, 2, 4, 7], [3, 3, 3.2, 6]]))
    assert len(target["boxes"]) == 2


def test_chance_comes_from_torchs_generator() -> None:
    def flips() -> list[bool]:
        torch.manual_seed(3)
        transforms = train_transforms()
        return [transforms(*sample([[1.0, 2, 4, 7]]))[1]["boxes"][0, 0].item() == 8 for _ in range(40)]

    assert flips() == flips()
    assert 5 < sum(flips()) < 35


def test_a_probability_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"horizontal_flip: expected a probability in 0\.\.1, got 2"):
        train_transforms(horizontal_flip=2)


def test_a_batch_is_two_lists() -> None:
    images, targets = collate([eval_transforms()(*sample([])), eval_transforms()(*sample([[1.0, 2, 4, 7]]))])
    assert [image.shape for image in images] == [(3, 8, 12)] * 2
    assert [len(target["boxes"]) for target in targets] == [0, 1]
