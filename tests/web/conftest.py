from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from torchdcn.analysis import saliency
from torchdcn.plotting import encode_png

from .running import Running, make_network, noise, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def one() -> Iterator[Running]:
    """One small network with modulated deformable layers."""
    with running(make_network()) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if shutil.which(CHROMIUM) is None and os.environ.get("TORCHDCN_NEEDS_BROWSER") != "1":  # .ci/run says that
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """A picture file."""
    path = tmp_path / "two things.png"
    path.write_bytes(encode_png(noise()))
    return path


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer regions are tried: what the page does with the one that is found is the same."""
    monkeypatch.setattr(saliency, "AREAS", saliency.AREAS[::5])
    monkeypatch.setattr(saliency, "BISECTIONS", 2)
