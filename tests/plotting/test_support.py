from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from torchdcn.plotting import Support, figure_bytes, support_figure
from torchdcn.plotting.support import COLORS

IMAGE = np.full((40, 60, 3), 120, np.uint8)


def support(**changes: Any) -> Support:
    region = np.zeros((40, 60), bool)
    region[10:20, 20:40] = True
    values: dict[str, Any] = {
        "name": "ours", "centre": [30, 15], "points": [[30.0, 15.0], [50.0, 35.0]], "strengths": [1.0, 0.0],
        "field": region * 2.0, "region": region, "fill": [1.0, 0.0, 0.0],
    }  # fmt: skip
    return Support(**(values | changes))


def drawn(*supports: Support, kinds: tuple[str, ...]) -> Any:
    return np.asarray(
        Image.open(io.BytesIO(figure_bytes(support_figure(IMAGE, supports, kinds), "png"))).convert("RGB")
    )


def test_the_region_is_cut_out_on_the_colour_that_filled_the_rest() -> None:
    picture = drawn(support(), kinds=("region",)).reshape(-1, 3)
    red, kept = (int((picture == color).all(1).sum()) for color in ([255, 0, 0], [120, 120, 120]))
    assert red / kept == pytest.approx((2400 - 200) / 200, rel=0.35)  # outlines and the ring lie on some


def test_points_without_strength_are_not_drawn() -> None:
    both, one = (drawn(support(strengths=s), kinds=("sampling",)) for s in ([1.0, 0.5], [1.0, 0.0]))
    alone = drawn(support(points=[[30.0, 15.0]], strengths=[1.0]), kinds=("sampling",))
    assert np.array_equal(one, alone)
    assert not np.array_equal(both, one)


def test_only_the_strongest_points_are_drawn() -> None:
    most = figure_bytes(support_figure(IMAGE, [support(strengths=[1.0, 0.5])], ["sampling"], most=1), "png")
    assert most == figure_bytes(support_figure(IMAGE, [support()], ["sampling"]), "png")


def test_networks_stand_side_by_side_for_one_kind_and_in_rows_for_several() -> None:
    one = drawn(support(), kinds=("field",)).shape
    beside = drawn(support(), support(name="theirs"), kinds=("field",)).shape
    below = drawn(support(), support(name="theirs"), kinds=("sampling", "field")).shape
    assert beside[0] == one[0]
    assert below[0] == pytest.approx(2 * one[0], abs=2)
    assert beside[1] == pytest.approx(below[1], abs=2)


def test_the_colours_read_without_seeing_colours() -> None:
    """Their lightness, which no kind of colour vision lacks, only grows, in steps that are alike."""
    red, green, blue = mpl.colormaps[COLORS](np.linspace(0, 1, 11))[:, :3].T ** 2.2
    lightness = 116 * np.cbrt(0.2126 * red + 0.7152 * green + 0.0722 * blue) - 16
    steps = np.diff(lightness)
    assert steps.min() > 5
    assert steps.max() < 2 * steps.min()


def test_heat_that_is_zero_everywhere_and_an_empty_region_are_drawn() -> None:
    empty = np.zeros((40, 60))
    nothing = support(field=empty, region=empty.astype(bool), points=np.zeros((0, 2)), strengths=[], outline=empty > 0)
    assert drawn(nothing, kinds=("sampling", "field", "region")).size


def test_files_are_the_same_every_time_and_an_svg_needs_no_other() -> None:
    first, second = (figure_bytes(support_figure(IMAGE, [support(box=[10, 5, 50, 30])]), "svg") for _ in range(2))
    assert first == second
    text = first.decode()
    assert "<svg" in text
    links = [part.split('"')[0] for part in text.split('href="')[1:]]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def test_what_does_not_fit_raises_one_line() -> None:
    for change, message in [
        ({"field": np.zeros((40, 61))}, r"expected field \[40, 60\], got \[40, 61\]"),
        ({"strengths": [1.0]}, r"got \[2, 2\], \[1\]"),
    ]:
        with pytest.raises(ValueError, match=rf"^supports: .*{message}"):
            support_figure(IMAGE, [support(**change)])
    with pytest.raises(ValueError, match=r"^kinds: .*got \['heat'\]"):
        support_figure(IMAGE, [support()], ["heat"])
    with pytest.raises(ValueError, match=r"^supports: expected at least one"):
        support_figure(IMAGE, [])
    with pytest.raises(ValueError, match=r"^kind: expected png or svg, got 'pdf'"):
        figure_bytes(support_figure(IMAGE, [support()]), "pdf")
