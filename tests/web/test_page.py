"""The page in a real browser: no error in its console, no request to another host, and what it draws is right."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from playwright.sync_api import expect

from torchdcn.analysis import DetectedObjects, Node, node_at, sampling_locations
from torchdcn.analysis.explain import picture_tensor
from torchdcn.analysis.objects import encode_mask
from torchdcn.plotting import PALETTE, encode_png

from .running import Running, make_network, noise, running
from .visiting import WAIT, load, numbers, says, shot, spot, view, visited

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from playwright.sync_api import Browser

pytestmark = pytest.mark.usefixtures("short_search")


def test_an_image_is_loaded_and_its_objects_are_shown(browser: Browser, one: Running, png: Path) -> None:
    with visited(browser, one) as page:
        expect(page.get_by_text("Drop an image here")).to_be_visible()
        canvas = load(page, png)
        found = one.networks[0].detector(noise())
        page.get_by_role("slider", name="Score at least").fill("0.05")
        expect(page.locator("#objects button")).to_have_count(len(found))
        everything = shot(canvas)
        page.get_by_role("slider", name="Score at least").fill(str(round(float(found.scores[1]) - 0.005, 2)))
        expect(page.locator("#objects button")).to_have_count(
            int((found.scores >= round(float(found.scores[1]) - 0.005, 2)).sum())
        )
        name = found.class_names[found.labels[0]]
        page.get_by_role("slider", name="Score at least").fill("0.05")
        page.get_by_label("Classes to show").get_by_text(name, exact=True).click()
        expect(page.locator("#objects button")).to_have_count(int((found.labels != found.labels[0]).sum()))
        page.get_by_role("slider", name="Score at least").fill("1")
        expect(page.locator("#objects")).to_contain_text("None that score as much")
        assert (shot(canvas) != everything).any()


def test_what_hovering_draws_is_what_the_analysis_computes(browser: Browser, one: Running, png: Path) -> None:
    model, pixels = one.networks[0].model, picture_tensor(noise())
    with visited(browser, one) as page:
        canvas = load(page, png)
        before = shot(canvas)
        for layer, depth, (x, y) in (
            ("backbone.body.layer4.1.conv2", 3, (60, 40)),
            ("backbone.body.layer4.1.conv2", 1, (3, 77)),
            ("backbone.body.layer3.0.conv2", 2, (111, 0)),
            ("backbone.body.layer2.1.conv2", 2, (31.5, 20)),
        ):
            page.get_by_label("Layer").select_option(layer)
            page.get_by_label("Through").select_option(str(depth))
            canvas.hover(position=spot(canvas, x, y))
            expect(view(page, "Sampling points")).to_have_attribute("aria-pressed", "true")
            # The page gives the position away by its own words; the pointer falls on a whole pixel of the screen.
            row, column = map(int, re.findall(r"(?:row|column) (\d+)", page.locator("#readout").inner_text()))
            node = node_at(model, pixels, layer, x, y)
            assert (row, column) == (node.y, node.x)
            canvas.focus()
            drawn = page.evaluate(
                """async ([x, y]) => {
                    const { samplesAt, state } = await import("/page/state.js");
                    const found = samplesAt(state.panes[0], { x, y });
                    const lists = ["points", "weights", "regular"].map((name) => [name, [...found[name]]]);
                    return { ...found, ...Object.fromEntries(lists) };
                }""",
                [x, y],
            )
            expected = sampling_locations(model, pixels, node, depth)
            assert tuple(drawn["layers"]) == expected.layers
            assert np.abs(np.reshape(drawn["points"], (-1, 2)) - expected.points.numpy()).max() < 1e-4
            assert np.abs(np.reshape(drawn["regular"], (-1, 2)) - expected.regular.numpy()).max() < 1e-4
            assert np.abs(np.array(drawn["weights"]) - expected.weights.numpy()).max() < 1e-6
            assert_drawn(shot(canvas), expected)
        assert (shot(canvas) != before).any()


def assert_drawn(picture: NDArray[np.uint8], expected: Any) -> None:
    """The heaviest samples are on the picture, in the project's colours, where they should be."""
    scale = picture.shape[1] / 112
    share = (expected.weights / expected.weights.max()).numpy()
    colors = (np.asarray(colormaps["plasma"](share))[:, :3] * 255).round()
    order = np.argsort(-share, kind="stable")
    seen = 0
    for index in order[:9]:
        x, y = ((expected.points[index] + 0.5) * scale).round().int().tolist()
        near_ring = (expected.points[index] - expected.centre).norm() * scale < 16
        if near_ring or not (3 < x < picture.shape[1] - 3 and 3 < y < picture.shape[0] - 3):
            continue
        # The very heaviest is on top of all; others may be partly below one that is as heavy.
        patch = picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(float)
        nearest = np.abs(patch[:, None] - colors[None, order[:60]]).max(axis=-1).min()
        assert nearest < 30, (x, y, patch.tolist())
        seen += 1
    assert seen or len(share) == 9


def test_a_click_draws_its_answers_on_the_picture(browser: Browser, one: Running, png: Path) -> None:
    with visited(browser, one) as page:
        canvas = load(page, png)
        canvas.hover(position=spot(canvas, 60, 40))
        hovered = shot(canvas)
        canvas.click(position=spot(canvas, 60, 40))
        expect(view(page, "Receptive field")).to_have_attribute("aria-pressed", "true", timeout=WAIT)
        field = shot(canvas)
        assert np.abs(field.astype(int) - hovered).max() > 60
        says(page, "are there. Escape clears the position.")
        view(page, "Saliency region").click()
        expect(view(page, "Saliency region")).to_have_attribute("aria-pressed", "true")
        region = shot(canvas)
        found = numbers(page)["networks"][0]
        fill = np.round(np.array(found["region"]["fill"]) * 255)
        gone = (np.abs(region.astype(int) - fill).max(axis=2) < 3).mean()
        assert gone == pytest.approx(1 - found["region"]["area"], abs=0.15)
        at = node_at(one.networks[0].model, picture_tensor(noise()), "backbone.body.layer4.1", 60, 40)
        assert found["node"] == {"layer": at.layer, "y": at.y, "x": at.x}
        assert found["region"]["error"] <= 0.2
        expected = sampling_locations(one.networks[0].model, picture_tensor(noise()), Node(**found["node"]))
        assert np.allclose(found["samples"]["points"], expected.points.numpy(), atol=1e-4)
        assert page.locator("#numbers").inner_text().count("%") >= 1


def test_a_click_is_compared_with_the_object_that_the_server_names(browser: Browser, png: Path) -> None:
    network = make_network()
    with torch.no_grad():  # surer than random networks are, and with masks that are not empty
        network.model.roi_heads.box_predictor.cls_score.bias[:2] += 1.2
        network.model.roi_heads.mask_predictor.mask_fcn_logits.bias += 0.1
    by_pixel = DetectedObjects.from_detections(network.detector(noise())).by_pixel
    y, x = (int(v[len(v) // 2]) for v in (by_pixel >= 0).nonzero())
    shown = """async ([x, y]) => {
        const { objectOf, sceneOf, state } = await import("/page/state.js");
        Object.assign(state, { hover: { x, y } });
        const [under] = sceneOf(state.panes[0]).objects;
        const { objects } = state.panes[0];
        return [objects.indexOf(under), objects.indexOf(objectOf(state.panes[0]))];
    }"""
    with running(network) as server, visited(browser, server) as page:
        canvas = load(page, png)
        page.get_by_role("slider", name="Score at least").fill("0.05")
        assert page.evaluate(shown, [x, y]) == [by_pixel[y, x], -1]
        page.get_by_role("slider", name="Score at least").fill("1")
        assert page.evaluate(shown, [x, y]) == [-1, -1]  # hidden, and no other one in its place
        canvas.click(position=spot(canvas, x, y))
        says(page, "are there")
        # The numbers' object is drawn, hidden or not.
        assert page.evaluate(shown, [x, y]) == [by_pixel[y, x], by_pixel[y, x]]
        found = numbers(page)["networks"][0]
        assert found["field"]["object_index"] == found["region"]["object_index"] == by_pixel[y, x]
        assert found["field"]["summary"]["inside"] > 0


def test_a_chosen_object_shows_its_bins(browser: Browser, png: Path) -> None:
    with running(make_network("mask_rcnn_r18_fpn_mdpool")) as server, visited(browser, server) as page:
        canvas = load(page, png)
        page.get_by_role("slider", name="Score at least").fill("0.05")
        page.locator("#objects button").first.click()
        expect(page.locator("#legend")).to_contain_text("a bin's modulation")
        expect(page.locator("#objects button").first).to_have_attribute("aria-pressed", "true")
        says(page, "are there")
        found = numbers(page)["networks"][0]
        expected = sampling_locations(server.networks[0].model, picture_tensor(noise()), Node(**found["node"]))
        assert np.allclose(found["bins"]["points"], expected.points.numpy(), atol=1e-3)
        share = (expected.weights / expected.weights.max()).numpy()
        best = int(share.argmax())
        picture = shot(canvas)
        x, y = ((expected.points[best] + 0.5) * picture.shape[1] / 112).round().int().tolist()
        color = np.asarray(colormaps["plasma"](1.0))[:3] * 255
        assert np.abs(picture[y, x] - color).max() < 30


def test_two_networks_stand_side_by_side(browser: Browser, png: Path) -> None:
    networks = make_network(), make_network("mask_rcnn_r18_fpn", None)
    with running(*networks) as server, visited(browser, server) as page:
        expect(page.locator("#warning")).to_contain_text("mask_rcnn_r18_fpn: random weights")
        load(page, png)
        letters = page.locator("#objects .letter").all_inner_texts()
        says(page, f"{letters.count('A')} and {letters.count('B')} objects found.")
        canvases = page.locator(".pane canvas")
        expect(canvases).to_have_count(2)
        boxes = [canvases.nth(i).bounding_box() for i in range(2)]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        before = shot(canvases.nth(1))
        canvases.first.hover(position=spot(canvases.first, 60, 40))
        expect(view(page, "Sampling points")).to_have_attribute("aria-pressed", "true")
        beside = page.evaluate(
            """async () => {
                const { samplesAt, state } = await import("/page/state.js");
                const found = samplesAt(state.panes[1], { x: 60, y: 40 });
                return [[...found.points], [...found.regular], found.layers];
            }"""
        )
        assert beside[0] == beside[1]  # a regular network samples its grid
        assert "backbone.body.layer4.1.conv2" in beside[2]
        assert (shot(canvases.nth(1)) != before).any()
        canvases.first.click(position=spot(canvases.first, 60, 40))
        says(page, "are there")
        found = numbers(page)["networks"]
        assert all(network["field"]["response"] and network["region"] for network in found)
        assert found[0]["node"] == found[1]["node"]
        with page.expect_download() as download:
            page.get_by_role("button", name="Picture (PNG)").click()
        assert download.value.suggested_filename == "two things-field.png"
        with Image.open(download.value.path()) as saved:
            assert saved.width > 2 * saved.height > 1000


def test_a_bad_file_is_told_and_the_page_goes_on(browser: Browser, one: Running, png: Path, tmp_path: Path) -> None:
    bad = tmp_path / "text.png"
    bad.write_text("not a picture")
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * (21 * 2**20))
    # The browser itself notes a 415 in its console, so this page is looked at without `visited`.
    page = browser.new_page()
    page.goto(one.url)
    page.set_input_files("input[type=file]", bad)
    says(page, "expected one of JPEG, PNG")
    page.set_input_files("input[type=file]", large)
    says(page, "large.png has more than 20 MB")
    load(page, png)
    page.close()


def test_a_dropped_file_and_a_drawn_scene_are_loaded_too(browser: Browser, one: Running) -> None:
    content = list(encode_png(noise()))
    with visited(browser, one) as page:
        page.get_by_role("button", name="Try a drawn scene").click()
        says(page, "Point at the picture")
        first = shot(page.locator(".pane canvas").first)
        transfer = page.evaluate_handle(
            """(content) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(content)], "dropped.png", { type: "image/png" }));
                return transfer;
            }""",
            content,
        )
        page.dispatch_event("body", "drop", {"dataTransfer": transfer})
        expect(page.locator(".pane canvas")).to_have_attribute("aria-label", re.compile("dropped.png"), timeout=WAIT)
        says(page, "Point at the picture")
        assert shot(page.locator(".pane canvas").first).shape != first.shape


def test_samples_are_there_within_two_seconds_of_the_objects(browser: Browser, one: Running, png: Path) -> None:
    took = []
    with visited(browser, one) as page:
        for _ in range(3):  # the best of three: others may be at work on this machine
            page.set_input_files("input[type=file]", png)
            expect(view(page, "Sampling points")).to_be_disabled(timeout=WAIT)
            page.wait_for_selector("#objects button, #objects .empty")
            began = time.monotonic()
            expect(view(page, "Sampling points")).to_be_enabled(timeout=WAIT)
            took.append(time.monotonic() - began)
            says(page, "Point at the picture")
    assert min(took) < 2, took


def test_masks_are_decoded_as_they_were_and_outlined(browser: Browser, one: Running) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((70, 90), bool)
    mask[20:60, 10:81] = rng.random((40, 71)) < 0.5
    mask[25:50, 20:70] = True  # long runs have numbers of several characters
    window = {"left": 8, "top": 18, "width": 75, "height": 44}
    with visited(browser, one) as page:
        decoded, loops = page.evaluate(
            """async ([rle, window]) => {
                const { decodeMask, loopsOf } = await import("/page/masks.js");
                const mask = decodeMask(rle, window);
                return [[...mask], loopsOf(mask, window)];
            }""",
            [encode_mask(mask), window],
        )
    assert np.array_equal(np.reshape(decoded, (44, 75)), mask[18:62, 8:83])
    # Corners are cut by an eighth of a pixel: the loops' areas add up to that of the mask but for these.
    area = sum(shoelace(np.array(loop)) for loop in loops)
    padded = np.pad(mask, 1).astype(int)
    squares = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    shares = np.array([0, 1 / 8, 1 / 2, 7 / 8, 1])[squares]
    crossed = (squares == 2) & (padded[:-1, :-1] == padded[1:, 1:])
    assert abs(area) == pytest.approx(float(np.where(crossed, 1 / 4, shares).sum()))


def shoelace(loop: NDArray[np.float64]) -> float:
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_the_pages_colours_are_the_projects(browser: Browser, one: Running) -> None:
    with visited(browser, one) as page:
        about = page.evaluate("fetch('/api/about').then((response) => response.json())")
    assert [tuple(color) for color in about["palette"]] == list(PALETTE)
    assert np.abs(np.array(about["colors"]) - colormaps["plasma"](np.arange(256), bytes=True)[:, :3]).max() == 0
