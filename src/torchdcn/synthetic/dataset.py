"""The embedded data set: scenes of jointed, bent figures, written as a folder in COCO's format."""

from __future__ import annotations

import json
import os
import platform
import shutil
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .scenes import CLASS_NAMES, SceneSettings, draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from .scenes import Scene

VERSION = 1
"""Raised with every change that alters a scene; part of the cache folder's name."""

SPLITS = ("train", "val")


def make_synthetic(
    root: str | Path,
    *,
    train: int = 600,
    val: int = 100,
    size: int = 160,
    seed: int = 0,
    difficulty: float = 0.3,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draws scenes made for deformable networks and writes them with exact masks, boxes and classes.

    Six classes (fish, ladder, ring, snake, spider, starfish) differ by structure alone: size, colour and
    texture are drawn alike for all of them, for the background and for fragments that belong to no class.
    Scene ``i`` of a split depends on the seed, its number, the size and the difficulty only, so a larger set
    begins with the smaller one.

    ``difficulty`` moves everything between two ends (:class:`~torchdcn.synthetic.scenes.SceneSettings`): at 0 one
    to three large figures near their rest pose stand out from a calm background; at 1 up to seven figures
    from a seventh of the scene's side upwards are bent at every joint, turned to any angle, sheared, seen in
    perspective, hide each other by up to a half, and lie among up to sixteen fragments on a background of
    their own contrast.

    Args:
        root: Folder to make; it must not exist, or be empty. It appears all at once, when it is complete.
        train: Number of scenes for training; ``val`` likewise.
        val: Number of scenes for validation.
        size: Side of the square scenes in pixels, 32 or more.
        seed: Any integer from 0 up.
        difficulty: 0 (easy) to 1 (hard).
        progress: Called with (scenes drawn, scenes in all).

    Returns:
        The folder: ``annotations/instances_{train,val}.json`` and JPEG images in ``train/`` and ``val/``.

    Raises:
        ValueError: A number is out of its range.
        FileExistsError: ``root`` exists and is not an empty folder.

    Example:
        >>> import tempfile
        >>> from torchdcn.data import make_synthetic
        >>> root = make_synthetic(tempfile.mkdtemp() + "/scenes", train=2, val=1, size=64, seed=1)
        >>> sorted(path.name for path in root.iterdir())
        ['annotations', 'train', 'val']
    """
    for name, value, least in (("train", train, 0), ("val", val, 0), ("size", size, 32), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of {least} or more, got {value!r}")
    settings = SceneSettings.at(difficulty)
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"root: {root} is there already and not an empty folder; give a new one")
    counts = {"train": train, "val": val}
    info = {"description": "torchdcn synthetic scenes", "version": VERSION}
    info |= {"size": size, "seed": seed, "difficulty": difficulty, **counts}
    # Written beside its place and then renamed: whoever finds the folder finds all of it.
    partial = partial_folder(root, os.getpid())
    shutil.rmtree(partial, ignore_errors=True)
    remove_leftovers(root)
    try:
        (partial / "annotations").mkdir(parents=True)
        done = 0
        for number, split in enumerate(SPLITS):
            (partial / split).mkdir()
            content = _empty(info)
            for index in range(counts[split]):
                scene = draw_scene(np.random.default_rng((seed, number, index)), size, settings)
                _add(content, scene, partial / split, f"{index:06d}.jpg")
                done += 1
                if progress is not None:
                    progress(done, train + val)
            text = json.dumps(content, separators=(",", ":"))
            (partial / "annotations" / f"instances_{split}.json").write_text(text)
        partial.replace(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def partial_folder(root: Path, process: int) -> Path:
    """Where a process of this machine draws the scenes that become ``root``."""
    return root.with_name(f".{root.name}.{platform.node()}.{process}.partial")


def remove_leftovers(root: Path) -> None:
    """Removes what killed processes of this machine have drawn for ``root``; others may still be drawing theirs."""
    for folder in root.parent.glob(f".{escape(root.name)}.*.partial"):
        process = folder.name.removesuffix(".partial").rpartition(".")[2]
        if process.isdigit() and folder == partial_folder(root, int(process)) and not _is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where the question would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _empty(info: dict[str, Any]) -> dict[str, Any]:
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)]
    return {"info": info, "categories": categories, "images": [], "annotations": []}


def _add(content: dict[str, Any], scene: Scene, folder: Path, file_name: str) -> None:
    """Saves the image, and appends it and its objects to the content of an annotation file."""
    from faster_coco_eval.core import mask as rle

    size = scene.image.shape[0]
    image_id = len(content["images"]) + 1
    if not cv2.imwrite(str(folder / file_name), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"{folder / file_name}: the image can't be written; is the disk full?")
    content["images"].append({"id": image_id, "file_name": file_name, "width": size, "height": size})
    for mask, label in zip(scene.masks, scene.labels, strict=True):
        encoded = rle.encode(np.asfortranarray(mask, np.uint8))
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": [float(value) for value in rle.toBbox(encoded)],
                "segmentation": {"size": [size, size], "counts": encoded["counts"].decode()},
            }
        )
