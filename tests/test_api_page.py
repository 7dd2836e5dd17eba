"""docs/api.md is what `python docs/api_page.py` writes, and has every public name."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import torchdcn
from torchdcn.models.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"

# What users type and what keeps its name and meaning.
PROMISED = {
    "torchdcn": ["Detector", "Detections"],
    "torchdcn.ops": ["deform_conv2d", "deform_roi_pool", "backend", "available_backends", "accelerate_torchvision"],
    "torchdcn.nn": [
        "DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2dPack", "DeformRoIPool", "DeformRoIPoolPack",
        "ModulatedDeformRoIPoolPack", "deformable", "offset_parameters",
    ],
    "torchdcn.models": ["list_models", "create_model"],
    "torchdcn.interop": ["convert_mmdet", "load_mmdet", "to_mmdet", "export_onnx"],
    "torchdcn.analysis": [
        "Node", "effective_receptive_field", "effective_sampling_locations", "response", "saliency_region",
        "sampling_locations",
    ],
    "torchdcn.evaluation": ["evaluate_coco"],
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("api_page", DOCS / "api_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text() -> str:
    return (DOCS / "api.md").read_text()


def headings(text: str) -> dict[str, set[str]]:
    rooms = re.split(r"^## (torchdcn\S*)$", text, flags=re.MULTILINE)
    return {
        room: set(re.findall(r"^### (\w+)$", part, re.MULTILINE))
        for room, part in zip(rooms[1::2], rooms[2::2], strict=True)
    }


def test_the_page_is_what_the_script_writes(script: Any, text: str) -> None:
    assert script.page() == text, "run `python docs/api_page.py`"


def test_every_promised_name_is_on_it(text: str) -> None:
    found = headings(text)
    for room, names in PROMISED.items():
        assert set(names) <= found[room]


def test_every_listed_room_is_on_it_with_all_that_it_lists(script: Any, text: str) -> None:
    found = headings(text)
    rooms = [name for name in torchdcn.__all__ if name[0].islower()]
    assert {f"torchdcn.{room}" for room in rooms} <= set(found)
    for room in rooms:
        assert set(script.listed(f"torchdcn.{room}")) == found[f"torchdcn.{room}"]


def test_every_setting_of_a_model_is_on_it_with_its_default(text: str) -> None:
    part = text.split("\n### Settings\n")[1].split("\n## ")[0]
    for field in fields(Settings):
        default = f" (`{field.default!r}`)" if field.default is not field.default_factory else ""
        assert f"- `{field.name}`{default if field.name not in ('masks', 'backbone') else ''}: " in part


def test_links_lead_somewhere(text: str) -> None:
    anchors = {name.lower() for names in headings(text).values() for name in names}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link[1:] in anchors if link.startswith("#") else (DOCS / link).is_file(), link


def test_no_name_is_given_an_address_or_left_without_words(text: str) -> None:
    assert " at 0x" not in text
    assert re.findall(r"^- `[^`]*`: *$", text, re.MULTILINE) == []
