from __future__ import annotations

import pytest
import torch

from torchdcn.models.masks import crop_masks, paste_masks


def test_a_full_mask_fills_the_pixels_whose_centres_its_box_holds():
    box = torch.tensor([[2.0, 3.0, 7.0, 9.0]])
    [[pasted]] = paste_masks(torch.ones(1, 1, 28, 28), box, (12, 10))
    assert torch.equal(pasted.nonzero().min(dim=0).values, torch.tensor([3, 2]))
    assert (pasted >= 0.5).sum() == 5 * 6


def test_what_is_cropped_is_pasted_back():
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    mask[0] = (x - 30) ** 2 + (y - 28) ** 2 < 20**2
    box = torch.tensor([[10.0, 8.0, 51.0, 49.0]])
    crops = crop_masks(mask, box, torch.tensor([0]), 28)
    assert set(crops.unique().tolist()) == {0, 1}
    [[pasted]] = paste_masks(crops[:, None], box, (64, 64), threshold=0.5)
    assert pasted.dtype == torch.bool
    union, overlap = (pasted | mask[0].bool()).sum(), (pasted & mask[0].bool()).sum()
    assert overlap / union > 0.95


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_boxes_outside_and_without_area_give_empty_masks(threshold):
    boxes = torch.tensor([[-30.0, -30, -20, -20], [5, 5, 5, 9], [90, 90, 99, 99], [-5, -5, 50, 50]])
    pasted = paste_masks(torch.ones(4, 1, 28, 28), boxes, (20, 30), threshold)
    assert pasted.shape == (4, 1, 20, 30)
    assert pasted.flatten(1).sum(1).tolist() == [0, 0, 0, 600]


def test_no_masks_keep_shape_and_dtype():
    assert paste_masks(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (20, 30)).shape == (0, 1, 20, 30)
    assert paste_masks(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (20, 30), 0.5).dtype == torch.bool
    assert crop_masks(torch.zeros(0, 8, 8), torch.zeros(0, 4), torch.zeros(0).long(), 28).shape == (0, 28, 28)
