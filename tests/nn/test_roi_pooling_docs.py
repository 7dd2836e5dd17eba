"""What docs/roi_pooling.md shows is what happens."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from torchdcn.ops import deform_roi_pool

PAGE = Path(__file__).parents[2] / "docs" / "roi_pooling.md"


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    page: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), page)  # noqa: S102 - our own page
        output = capsys.readouterr().out.splitlines()
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert expected
        assert output == expected


def test_its_table_has_the_functions_arguments_in_their_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\|.*\|$", PAGE.read_text().split("## The layers")[0], re.MULTILINE)
    given = list(inspect.signature(deform_roi_pool).parameters)
    assert rows[: len(given)] == given
