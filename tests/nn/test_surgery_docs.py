"""What docs/surgery.md and the layers' docstrings show is what happens."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "surgery.md"


def test_the_page_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="timm is not installed, which the page uses")
    monkeypatch.chdir(tmp_path)  # the page saves a file
    torch.manual_seed(0)
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```(?:\n\nprints\n\n```text\n(.*?)```)?", text, re.DOTALL)
    assert len(blocks) > 5
    page: dict[str, object] = {}
    for code, printed in blocks:
        exec(compile(code, str(PAGE), "exec"), page)  # noqa: S102 - our own page
        output = capsys.readouterr().out
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert [line for line in expected if line not in output.splitlines()] == []
        assert printed in output
    assert "conv_offset" in blocks[0][1]


@pytest.mark.parametrize("module", ["deform_conv", "layout", "offset_keys", "offsets", "surgery"])
def test_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"torchdcn.nn.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
