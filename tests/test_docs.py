"""What holds for all pages: they are found from the README, their links lead somewhere, variables are listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_readmes_table_has_every_page() -> None:
    rows = [line for line in PAGES[0].read_text().splitlines() if line.startswith("| ")]
    missing = [page.name for page in PAGES[1:] if not any(f"](docs/{page.name})" in row for row in rows)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_environment_variable_that_is_read_is_listed() -> None:
    read: set[str] = set()
    for folder, ending in (("src", "*.py"), ("csrc", "*.h"), ("csrc", "*.cpp"), ("tests", "*.py")):
        for file in (ROOT / folder).rglob(ending):
            read |= set(re.findall(r"""(?:environ(?:\.get\(|\[)|getenv\()["'](\w+)["']""", file.read_text()))
    listed = set(
        re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "troubleshooting.md").read_text().split("## Environment")[1])
    )
    assert {"TORCHDCN_ISA", "TORCHDCN_AUTOTUNE"} <= read
    assert read <= listed


def test_the_watch_names_the_first_layer_whose_offsets_are_not_finite() -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "troubleshooting.md").read_text(), re.DOTALL)
    page: dict[str, object] = {}
    exec(compile(code, "troubleshooting.md", "exec"), page)  # noqa: S102 - our own page
    from torchdcn.nn import ModulatedDeformConv2dPack

    network = torch.nn.Sequential(*(ModulatedDeformConv2dPack(4, 4, 3, padding=1) for _ in range(2)))
    page["watch"](network)  # type: ignore[operator]
    network(torch.rand(1, 4, 8, 8))
    network[1].conv_offset.bias.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^1: its offset is not finite$"):
        network(torch.rand(1, 4, 8, 8))
