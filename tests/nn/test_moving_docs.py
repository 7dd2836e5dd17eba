"""What docs/moving.md shows is what happens, and the signatures it gives are ours and torchvision's."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import torchvision

import torchdcn

PAGE = Path(__file__).parents[2] / "docs" / "moving.md"


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    page: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), page)  # noqa: S102 - our own page
        output = capsys.readouterr().out.splitlines()
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert output == expected


@pytest.mark.parametrize("function", [torchdcn.ops.deform_conv2d, torchdcn.ops.deform_roi_pool])
def test_the_page_gives_the_order_of_our_arguments(function) -> None:  # type: ignore[no-untyped-def]
    call = f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"
    assert f"| `{call}` |" in PAGE.read_text()


def test_torchvisions_signatures_are_ours_as_the_page_says() -> None:
    theirs = inspect.signature(torchvision.ops.deform_conv2d).parameters
    assert list(theirs) == list(inspect.signature(torchdcn.ops.deform_conv2d).parameters)
    layer = inspect.signature(torchvision.ops.DeformConv2d).parameters
    assert list(layer) == list(inspect.signature(torchdcn.nn.DeformConv2d).parameters)


def test_every_layer_in_the_column_of_ours_exists() -> None:
    layers = PAGE.read_text().split("## Layers")[1].split("## Weights")[0]
    rows = [row.split("|")[2] for row in layers.splitlines() if row.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)} - {"modulated"}
    assert {"DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2dPack"} <= named
    assert [name for name in sorted(named) if not hasattr(torchdcn.nn, name)] == []


def test_links_lead_somewhere() -> None:
    text = PAGE.read_text()
    headings = {
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link[1:] in headings if link.startswith("#") else (PAGE.parent / link).is_file(), link
