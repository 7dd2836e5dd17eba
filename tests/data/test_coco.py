from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle
from torch.utils.data import DataLoader

from torchdcn.data import CocoDetection, collate, require_objects, train_transforms

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Folder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

POLYGON = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]
MASK = np.zeros((8, 12), np.uint8)
MASK[1:4, 2:6] = 1


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    counts, value, run = [], 0, 0
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    return {"size": list(mask.shape), "counts": [*counts, run]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = oracle.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("kind", [lambda _: POLYGON, uncompressed, compressed], ids=["polygon", "rle", "rle_text"])
def test_every_kind_of_segmentation_gives_the_same_target(folder: Folder, kind: Any) -> None:
    folder.add(kind(MASK), area=12.5)
    image, target = CocoDetection(folder.write())[0]
    assert image.dtype == torch.uint8
    assert torch.equal(image.flatten()[:2], torch.tensor([0, 3]))  # red comes first, row by row
    assert image.shape == (3, 8, 12)
    assert target["boxes"].tolist() == [[2, 1, 6, 4]]
    assert target["labels"].tolist() == [1]
    assert target["area"].tolist() == [12.5]
    assert target["iscrowd"].tolist() == [0]
    assert target["image_id"] == 7
    assert np.array_equal(target["masks"].numpy(), MASK[None])


def test_labels_follow_the_ascending_category_ids(folder: Folder) -> None:
    folder.add(POLYGON, category_id=44)
    folder.add(POLYGON, category_id=3)
    data = CocoDetection(folder.write())
    assert data.category_ids == (3, 44)
    assert data.class_names == ("eel", "cup")
    labels = data[0][1]["labels"]
    assert labels.dtype == torch.int64
    assert [data.category_ids[label] for label in labels] == [44, 3]


def test_crowds_are_left_out_unless_asked_for(folder: Folder) -> None:
    folder.add(uncompressed(MASK), iscrowd=1)
    folder.add(POLYGON)
    root = folder.write()
    assert CocoDetection(root)[0][1]["iscrowd"].tolist() == [0]
    assert CocoDetection(root, crowds=True)[0][1]["iscrowd"].tolist() == [1, 0]


def test_images_without_objects_stay(folder: Folder) -> None:
    folder.content["images"].append({"id": 2, "file_name": "b.png", "width": 12, "height": 8})
    folder.add(POLYGON)
    data = CocoDetection(folder.write(), transforms=train_transforms())
    assert data.image_ids == [7, 2]
    target = data[1][1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 8, 12)
    assert target["labels"].shape == target["area"].shape == target["iscrowd"].shape == (0,)
    assert len(data[0][1]["labels"]) == 1


def test_data_without_an_object_is_refused_where_some_are_needed(folder: Folder) -> None:
    folder.add(uncompressed(MASK), iscrowd=1)
    folder.add(POLYGON, bbox=[3, 2, 0, 4])
    with pytest.raises(ValueError, match=r"train\.json: none of the 1 images .* has an object .*; look") as caught:
        require_objects(CocoDetection(folder.write()))
    assert "\n" not in str(caught.value)
    folder.add(POLYGON)
    require_objects(CocoDetection(folder.write()))


def test_boxes_are_clipped_and_empty_ones_left_out(folder: Folder) -> None:
    folder.add(POLYGON, bbox=[-3, 5, 100, 100])
    folder.add(POLYGON, bbox=[3, 2, 0, 4])
    folder.add(POLYGON, bbox=[12.5, 2, 5, 4])
    assert CocoDetection(folder.write())[0][1]["boxes"].tolist() == [[0, 5, 12, 8]]


def test_a_file_without_segmentations_gives_boxes_alone(folder: Folder) -> None:
    folder.add()
    folder.add([])
    data = CocoDetection(folder.write())
    assert not data.has_masks
    assert "masks" not in data[0][1]
    assert data[0][1]["area"].tolist() == [12, 12]  # from the box


def test_segmentations_for_some_objects_only_are_refused_unless_masks_are_off(folder: Folder) -> None:
    folder.add(POLYGON)
    folder.add()
    root = folder.write()
    with pytest.raises(ValueError, match=r"annotation 2 has no segmentation.*masks=False"):
        CocoDetection(root)
    assert len(CocoDetection(root, masks=False)[0][1]["boxes"]) == 2


def test_cocos_own_folder_names_are_found(folder: Folder) -> None:
    data = CocoDetection(folder.write("val", "2017"), "val")
    assert data.annotation_file.name == "instances_val2017.json"
    assert data.image_path(0) == folder.root / "val2017" / "a.png"


def test_an_index_beyond_the_end_ends_iteration(folder: Folder) -> None:
    assert len(list(CocoDetection(folder.write()))) == 1


def test_a_missing_folder_or_file_is_named(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError, match="data: there is no such folder"):
        CocoDetection(folder.root)
    root = folder.write("train")
    with pytest.raises(FileNotFoundError, match=r"instances_trian\.json: .* did you mean the split 'train'"):
        CocoDetection(root, "trian")
    (root / "train" / "a.png").unlink()
    data = CocoDetection(root)
    with pytest.raises(FileNotFoundError, match=r"a\.png: there is no such image file"):
        data[0]
    (root / "train").rmdir()
    with pytest.raises(FileNotFoundError, match="train: there is no such folder of images"):
        CocoDetection(root)


def test_an_unreadable_image_is_named_in_one_line(folder: Folder) -> None:
    root = folder.write()
    path = root / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(OSError, match=r"a\.png: can't be read as an image") as caught:
        CocoDetection(root)[0]
    assert "\n" not in str(caught.value)


def test_a_mask_that_does_not_decode_is_named_at_open(folder: Folder) -> None:
    folder.add({"size": [8, 12], "counts": "ooooo"})
    with pytest.raises(ValueError, match=r"instances_train\.json: annotation 1: segmentation: its RLE is damaged"):
        CocoDetection(folder.write())


def test_it_travels_to_workers(folder: Folder) -> None:
    folder.add(POLYGON)
    data = CocoDetection(folder.write(), transforms=train_transforms(horizontal_flip=0))
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301 - our own bytes
    assert torch.equal(copy[0][1]["masks"], data[0][1]["masks"])
    images, targets = next(iter(DataLoader(data, 1, collate_fn=collate, num_workers=1)))
    assert images[0].shape == (3, 8, 12)
    assert targets[0]["boxes"].tolist() == [[2, 1, 6, 4]]


@pytest.mark.parametrize(
    ("name", "split", "images", "objects", "classes"),
    [
        ("coco_sample", "train", 80, 761, 80),
        ("coco_sample", "val", 57, 510, 80),
        ("nuclei", "train", 427, 12662, 1),
        ("nuclei", "val", 103, 3046, 1),
    ],
)
def test_real_data_is_read_whole(shared: Path, name: str, split: str, images: int, objects: int, classes: int) -> None:
    data = CocoDetection(shared / name, split)
    assert (len(data), len(data.class_names)) == (images, classes)
    assert sum(len(data.target(index)["boxes"]) for index in range(0, len(data), 10)) > 0
    assert int(data._starts[-1]) == objects


@pytest.mark.parametrize("name", ["coco_sample", "nuclei"])
def test_masks_equal_pycocotools(shared: Path, name: str) -> None:
    data = CocoDetection(shared / name, "val", crowds=True)
    content = json.loads(data.annotation_file.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    wanted: dict[int, list[np.ndarray]] = {image_id: [] for image_id in sizes}
    for entry in content["annotations"]:
        height, width = sizes[entry["image_id"]]
        segmentation = entry["segmentation"]
        if isinstance(segmentation, list):
            segmentation = oracle.merge(oracle.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            segmentation = oracle.frPyObjects(segmentation, height, width)
        wanted[entry["image_id"]].append(oracle.decode(segmentation))
    for index in range(0, len(data), 3):
        masks = data.target(index)["masks"].numpy()
        expected = wanted[data.image_ids[index]]
        assert len(masks) == len(expected)
        assert all(np.array_equal(mask, other) for mask, other in zip(masks, expected, strict=True))
