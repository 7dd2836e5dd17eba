"""The page in a browser: opening it, choosing a picture, looking at what is drawn."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from playwright.sync_api import Browser, Locator, Page

    from .running import Running

WAIT = 240_000  # milliseconds; a busy machine is no fault of the page


@contextmanager
def visited(browser: Browser, server: Running, **how: Any) -> Iterator[Page]:
    """The page, open; at the end there must have been no complaint and no other host."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | how))
    page = context.new_page()
    page.set_default_timeout(WAIT)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "requestfailed", lambda r: faults.append(f"{r.url}: {r.failure}") if "ABORTED" not in str(r.failure) else None
    )
    page.on(
        "request", lambda r: None if r.url.startswith((server.url, "blob:")) else faults.append(f"foreign: {r.url}")
    )
    try:
        page.goto(server.url)
        page.wait_for_selector("#views button", state="attached")  # the page has started, and listens
        yield page
        assert faults == []
    finally:
        context.close()


def says(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text, timeout=WAIT)


def load(page: Page, file: Path) -> Locator:
    """Chooses a file, waits until the page can be pointed at; the first picture."""
    page.set_input_files("input[type=file]", file)
    says(page, "Point at the picture")
    return page.locator(".pane canvas").first


def shot(canvas: Locator) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))


def spot(canvas: Locator, x: float, y: float, width: int = 112, height: int = 80) -> dict[str, float]:
    """Where a pixel of the picture is on the canvas."""
    box = canvas.bounding_box()
    assert box is not None
    return {"x": (x + 0.5) * box["width"] / width, "y": (y + 0.5) * box["height"] / height}


def numbers(page: Page) -> Any:
    with page.expect_download() as download:
        page.get_by_role("button", name="Numbers (JSON)").click()
    return json.loads(download.value.path().read_text())


def view(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name="What to show").get_by_role("button", name=name)
