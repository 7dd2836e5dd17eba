"""docs/models.md says what the models are; `python docs/models_page.py` writes it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from torchdcn.bench.flops import detection_flops
from torchdcn.models import list_models
from torchdcn.models.summary import summary
from torchdcn.ops import available_backends

from ..interop import test_mmdet
from . import test_mmdet_numbers, test_parity, test_training_step

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("models_page", DOCS / "models_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """The cells of each model, in the order of the page's columns."""
    lines = re.findall(r"^\| `(\w+_rcnn_[^`]*)` \| (.*) \|$", (DOCS / "models.md").read_text(), re.MULTILINE)
    assert len(lines) == len(dict(lines))
    return {name: cells.split(" | ") for name, cells in lines}


def test_every_model_is_on_the_page_with_its_layers_parameters_and_published_figures(rows: dict[str, list[str]]):
    assert set(rows) == set(list_models())
    for name, (layers, parameters, _, box, mask, _) in rows.items():
        found = summary(name)
        assert (layers, parameters) == (found.layers or "-", f"{found.parameters:,}")
        assert (box, mask) == tuple(f"{ap}" if ap else "-" for ap in (found.box_ap, found.mask_ap))


@pytest.mark.skipif(available_backends()["cpp"] != "", reason="RoI pooling counts in its kernels")
@pytest.mark.parametrize("name", ["faster_rcnn_r18_fpn", "mask_rcnn_r18_fpn_mdconv_c3-c5_mdpool", "mask_rcnn_r50_fpn"])
def test_operations_are_what_torch_counts(name: str, rows: dict[str, list[str]], script: Any):
    assert rows[name][2] == script.giga(sum(detection_flops(name, script.size_of(name)).values()))


def test_what_the_page_calls_verified_is_what_the_tests_compare(rows: dict[str, list[str]], script: Any):
    checked = {word: check.names for word, check in script.CHECKS.items()}
    assert checked["stages"] == set(test_parity.CONFIGS.values())
    assert checked["kept"] == test_mmdet_numbers.MODELS
    assert checked["keys"] == set(test_mmdet.KEYS.values())
    assert checked["step"] == {name for name, _ in test_training_step.KINDS}
    assert all(rows[name][5] == script.verified(name) for name in list_models())
    for check in script.CHECKS.values():
        assert (DOCS.parent / "tests" / check.tests).is_file()
        assert f"`pytest tests/{check.tests}`" in (DOCS / "models.md").read_text()
