from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from torchdcn.interop import load_mmdet
from torchdcn.models import create_model

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="session")
def vectors() -> Path:
    folder = SHARED / "vectors"
    if not folder.is_dir():
        pytest.skip(f"mmdetection's results are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def fill(vectors: Path) -> Any:
    """The module that makes the weights and the picture which mmdetection was given."""
    spec = importlib.util.spec_from_file_location("fill", vectors / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def filled(vectors: Path, fill: Any) -> Callable[[str, str], Any]:
    """Makes one of our models with the weights that mmdetection had for one of its configurations."""

    def make(config: str, name: str) -> Any:
        keys = json.loads((vectors / "keys" / f"{config}.keys.json").read_text())
        state = {key: torch.from_numpy(fill.fill_array(key, shape)) for key, shape, _ in keys}
        return load_mmdet(create_model(name, norm="bn_eval"), state).eval()

    return make


@pytest.fixture
def target() -> Callable[..., dict[str, Any]]:
    """A target of some filled boxes, with 0-based labels."""

    def make(*boxes: tuple[int, int, int, int], labels: list[int] | None = None, size: Any = (64, 80)) -> Any:
        masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = 1
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64),
            "masks": masks,
        }

    return make
