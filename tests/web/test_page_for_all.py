"""The page for everyone: keyboard, phone, both themes, names and contrast; and stopping what takes long."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from playwright.sync_api import expect

from .running import explain_module
from .visiting import WAIT, load, numbers, says, spot, view, visited

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from .running import Running

pytestmark = pytest.mark.usefixtures("short_search")


def test_everything_works_with_the_keyboard(browser: Browser, one: Running, png: Path) -> None:
    with visited(browser, one) as page:
        load(page, png)
        for _ in range(4):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "CANVAS":
                break
        assert page.evaluate("document.activeElement.tagName") == "CANVAS"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px"
        page.keyboard.press("ArrowRight")
        said = page.get_by_role("status").inner_text()
        row, column = map(int, re.findall(r"\d+", said))
        page.keyboard.press("ArrowLeft")
        says(page, f"row {row}, column {column - 1}")
        for _ in range(9):
            page.keyboard.press("Shift+ArrowUp")
        says(page, f"row 0, column {column - 1}")
        page.keyboard.press("Enter")
        expect(view(page, "Receptive field")).to_have_attribute("aria-pressed", "true", timeout=WAIT)
        says(page, "are there")
        page.keyboard.press("4")
        expect(view(page, "Saliency region")).to_have_attribute("aria-pressed", "true")
        assert numbers(page)["networks"][0]["node"] == {"layer": "backbone.body.layer4.1", "y": 0, "x": column - 1}
        page.keyboard.press("Escape")
        expect(view(page, "Objects")).to_have_attribute("aria-pressed", "true")
        expect(view(page, "Saliency region")).to_be_disabled()


def test_escape_cancels_a_search(browser: Browser, one: Running, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def endless(*_: Any, progress: Any, **__: Any) -> None:
        while progress(7, 40):
            time.sleep(0.005)
        told.append("stopped")
        raise ValueError("stopped")

    monkeypatch.setattr(explain_module, "saliency_region", endless)
    with visited(browser, one) as page:
        canvas = load(page, png)
        canvas.click(position=spot(canvas, 10, 10))
        expect(page.locator("#step")).to_contain_text("pass 7 of at most 40", timeout=WAIT)
        assert "pass" not in page.get_by_role("status").inner_text()  # forty steps are too much to read out loud
        expect(page.get_by_role("progressbar")).to_have_attribute("value", "0.175")
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        page.keyboard.press("Escape")
        says(page, "Cancelled")
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        assert view(page, "Receptive field").get_attribute("aria-pressed") == "true"  # what was there stays
        for _ in range(500):
            if told:
                break
            page.wait_for_timeout(10)
        assert told == ["stopped"]


def test_the_page_fits_a_phone(browser: Browser, one: Running, png: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    with visited(browser, one, **phone) as page:
        canvas = load(page, png)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = canvas.bounding_box()
        assert box is not None
        assert box["width"] > 350
        small = page.evaluate(
            """[...document.querySelectorAll("button, select, label.button")]
                .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 36).map((e) => e.outerHTML)"""
        )
        assert small == []
        canvas.tap(position=spot(canvas, 60, 40))
        says(page, "are there")
        assert "Escape" not in page.get_by_role("status").inner_text()  # a phone has no such key
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        expect(view(page, "Receptive field")).to_have_attribute("aria-pressed", "true")


CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const over = (color, below) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const one of [below, color]) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const bright = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.disabled || element.closest("[aria-hidden]")) continue;
        let below = "#fff";
        for (let at = element, layers = []; ; at = at.parentElement) {
            if (at) layers.push(getComputedStyle(at).backgroundColor);
            else { for (const one of layers.reverse()) below = `rgb(${over(one, below).join(" ")})`; break; }
        }
        const [a, b] = [bright(over(getComputedStyle(element).color, below)), bright(over(below, below))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 80)}`);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_both_themes(browser: Browser, one: Running, png: Path, scheme: Any) -> None:
    with visited(browser, one, color_scheme=scheme) as page:
        assert page.evaluate(CONTRAST) == []
        canvas = load(page, png)
        page.get_by_role("slider", name="Score at least").fill("0.05")
        assert page.evaluate(CONTRAST) == []
        canvas.hover(position=spot(canvas, 60, 40))
        expect(view(page, "Sampling points")).to_have_attribute("aria-pressed", "true")
        assert page.evaluate(CONTRAST) == []
        paper = np.mean(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
        assert (paper < 60) == (scheme == "dark")
        page.get_by_role("button", name="Theme").click()  # as the system, then light, then dark
        page.get_by_role("button", name="Theme").click()
        paper = np.mean(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
        assert paper < 60
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_everything_has_a_name(browser: Browser, one: Running, png: Path) -> None:
    with visited(browser, one) as page:
        load(page, png)
        page.get_by_role("slider", name="Score at least").fill("0.05")
        nameless = page.evaluate(
            """[...document.querySelectorAll("button, select, input, canvas[tabindex], progress, section, aside")]
                .filter((e) => !(e.ariaLabel || e.getAttribute("aria-labelledby") || e.labels?.length
                    || e.textContent.trim())).map((e) => e.outerHTML)"""
        )
        assert nameless == []
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("#objects").inner_html().count("<b>") == 0  # a class's name is text
