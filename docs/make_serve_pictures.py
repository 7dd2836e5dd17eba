"""Makes the pictures of ``docs/serve.md``: ``python docs/make_serve_pictures.py SCENE A B OTHER C``.

SCENE and OTHER are pictures; A, B and C are weights of ``mask_rcnn_r18_fpn_mdconv_c3-c5``, of ``mask_rcnn_r18_fpn``
and of ``mask_rcnn_r18_fpn_mdconv_c3-c5_mdpool``, trained on drawn scenes. Needs Chromium, as ``tests/web`` does.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
PICTURES = Path(__file__).parent / "pictures"
DEFORMABLE, REGULAR, POOLING = (
    "mask_rcnn_r18_fpn_mdconv_c3-c5",
    "mask_rcnn_r18_fpn",
    "mask_rcnn_r18_fpn_mdconv_c3-c5_mdpool",
)
WAIT = 600_000
MOST = 390 * 1024  # bytes of a picture


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """The page's address."""
    command = [sys.executable, "-m", "torchdcn", "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own command
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def page_with(browser: Browser, url: str, scene: str, width: int, height: int, **how: Any) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": width, "height": height}, **how)
    page.goto(url)
    page.set_input_files("input[type=file]", scene)
    says(page, "Point at the picture")
    yield page
    page.close()


def says(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_contain_text(text, timeout=WAIT)


def best(page: Page) -> dict[str, float]:
    """The middle of the surest object, on the first canvas."""
    x, y = page.evaluate(
        """async () => {
            const { bestPlace, state } = await import("/page/state.js");
            const { x, y } = bestPlace();
            return [(x + 0.5) / state.picture.width, (y + 0.5) / state.picture.height];
        }"""
    )
    box = page.locator(".pane canvas").first.bounding_box()
    return {"x": x * box["width"], "y": y * box["height"]}


def save(page: Page, name: str, full: bool = False) -> None:
    path = PICTURES / f"serve-{name}.png"
    page.screenshot(path=path, full_page=full)
    with Image.open(path) as shot:
        picture = shot.convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > MOST:  # fewer colours, the rare ones among them: the small dots are what matters
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(path, optimize=True)
    print(path, path.stat().st_size // 1024, "KB")


def main() -> None:
    scene, deformable, regular, other, pooling = sys.argv[1:]
    first = ("--model", DEFORMABLE, "--weights", deformable)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        with serving(*first) as url:
            with page_with(browser, url, scene, 1280, 830) as page:
                save(page, "objects")
                page.locator(".pane canvas").hover(position=best(page))
                page.wait_for_timeout(200)
                save(page, "points")
            with page_with(browser, url, scene, 1280, 830, color_scheme="dark") as page:
                page.locator(".pane canvas").click(position=best(page))
                says(page, "are there")
                save(page, "dark")
            with page_with(browser, url, scene, 390, 844, device_scale_factor=2) as page:
                page.locator("#objects button").first.click()
                says(page, "are there")
                page.locator("#views button[data-name=region]").click()
                page.evaluate("scrollTo(0, 0)")
                save(page, "phone")
        with (
            serving("--model", POOLING, "--weights", pooling) as url,
            page_with(browser, url, other, 1280, 830) as page,
        ):
            page.locator("#objects button").first.click()
            says(page, "are there")
            save(page, "bins")
        with (
            serving(*first, "--compare", f"{REGULAR}:{regular}") as url,
            page_with(browser, url, scene, 1280, 830) as page,
        ):
            page.locator(".pane canvas").first.hover(position=best(page))
            page.wait_for_timeout(200)
            save(page, "compare")
        browser.close()


if __name__ == "__main__":
    main()
