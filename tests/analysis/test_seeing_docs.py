"""What docs/seeing.md and the analysis's docstrings show is what happens."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from torchdcn.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "seeing.md"
MODULES = [
    "effective_locations", "explain", "node", "objects", "pictures", "raw_locations", "receptive_field", "saliency",
    "summary",
]  # fmt: skip


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    page: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), page)  # noqa: S102 - our own page
        printed = capsys.readouterr().out.splitlines()
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert expected
        assert [line for line in expected if line not in printed] == []


def test_its_pictures_and_scripts_are_there_and_its_commands_have_the_flags_they_use() -> None:
    text = PAGE.read_text()
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", text)
    scripts = re.findall(r"\b(docs/[\w/]+\.py)\b", text)
    assert len(pictures) >= 2
    assert scripts
    assert [name for name in pictures if not (PAGE.parent / name).is_file()] == []
    assert [name for name in scripts if not (PAGE.parents[1] / name).is_file()] == []
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group has them
    commands = [c.replace("\\\n", " ") for c in re.findall(r"^ *torchdcn (?:[^\n]*\\\n)*[^\n]*", text, re.MULTILINE)]
    assert commands
    for command in commands:
        verb, *words = shlex.split(command)[1:]
        known = {option for parameter in verbs[verb].params for option in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"torchdcn.analysis.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
