from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torchdcn.plotting import detections as drawing
from torchdcn.plotting import draw_detections, encode_png, readable_scale


def gray(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def spots(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every tag that is put from here on, with where it went (None: nowhere)."""
    seen: list[tuple[str, Any]] = []
    real = drawing._best_spot

    def watched(text: str, *rest: Any, **named: Any) -> Any:
        spot = real(text, *rest, **named)
        seen.append((text, spot))
        return spot

    monkeypatch.setattr(drawing, "_best_spot", watched)
    return seen


def test_nothing_found_leaves_the_picture_as_it_was() -> None:
    image = gray()
    drawn = draw_detections(
        image, np.zeros((0, 4)), np.zeros(0), np.zeros(0), np.zeros((0, 200, 300)), ["cat"], scale=1
    )
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


def test_masks_are_filled_and_outlined_and_the_rest_stays() -> None:
    mask = np.zeros((1, 200, 300), bool)
    mask[0, 60:120, 80:160] = True
    drawn = draw_detections(gray(), [[80, 60, 160, 120]], masks=mask, scale=1)
    changed = (drawn != 128).any(-1)
    assert changed[60:120, 80:160].all()
    assert not changed[:55].any()
    assert not changed[:, 170:].any()
    middle, edge = drawn[90, 120].astype(int), drawn[60, 120].astype(int)
    color = np.array(drawing.PALETTE[0])
    assert np.abs(middle - color).sum() > np.abs(edge - color).sum()


def test_a_small_mask_in_front_of_a_large_one_keeps_its_colour() -> None:
    masks = np.zeros((2, 200, 300), bool)
    masks[0, 90:110, 140:160] = True  # first, and so the better detection
    masks[1, 20:180, 20:280] = True
    boxes = [[140, 90, 160, 110], [20, 20, 280, 180]]
    together = draw_detections(gray(), boxes, masks=masks, scale=1)
    assert (together[100, 150] != together[50, 50]).any()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (480, 640), (3000, 4000), (40, 900)])
def test_tags_stay_inside_the_picture_and_off_each_other(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spots(monkeypatch)
    rng = np.random.default_rng(0)
    corners = rng.uniform(-0.1, 0.9, (30, 2)) * [width, height]
    boxes = np.concatenate([corners, corners + rng.uniform(0.02, 0.3, (30, 2)) * [width, height]], axis=1)
    labels = rng.integers(0, 3, 30)
    drawn = draw_detections(gray(height, width), boxes, rng.random(30), labels, None, ["cat", "giraffe", "dog"])
    factor = readable_scale(height, width)
    assert drawn.shape == (height * factor, width * factor, 3)
    placed = [spot for _, spot in seen if spot is not None]
    assert len(placed) >= 3
    for i, (x1, y1, x2, y2) in enumerate(placed):
        assert 0 <= x1 < x2 < drawn.shape[1]
        assert 0 <= y1 < y2 < drawn.shape[0]
        assert not any(drawing._overlap(placed[i], other) for other in placed[:i])


def test_tags_say_class_and_score_and_the_best_choose_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spots(monkeypatch)
    draw_detections(gray(), [[20, 50, 60, 90], [150, 50, 200, 90]], [0.4, 0.876], [1, 0], None, ["cat", "dog"])
    assert [text for text, _ in seen] == ["cat 0.88", "dog 0.40"]


def test_a_crowd_of_one_class_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spots(monkeypatch)
    boxes = [[x, y, x + 20, y + 20] for x in range(10, 280, 50) for y in range(10, 180, 50)]
    draw_detections(gray(), boxes, np.linspace(1, 0.5, len(boxes)), np.zeros(len(boxes)), None, ["nucleus"])
    texts = [text for text, _ in seen]
    assert texts[0] == f"{len(boxes)} × nucleus"
    assert texts[1] == "1.00"
    assert not any("nucleus" in text for text in texts[1:])


def test_a_tag_goes_where_it_hides_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spots(monkeypatch)
    masks = np.zeros((2, 200, 300), bool)
    masks[0, 100:160, 100:200] = True
    masks[1, 40:99, 60:260] = True  # above the first: its tag must go below
    draw_detections(gray(), [[100, 100, 200, 160], [60, 40, 260, 99]], [0.9, 0.8], [0, 0], masks, ["a", "b"], scale=1)
    assert seen[0][1][1] > 155


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("image", {"image": np.zeros((4, 4), np.uint8)}),
        ("image", {"image": np.zeros((4, 4, 3))}),
        ("scores", {"scores": [0.5]}),
        ("labels", {"labels": [0]}),
        ("masks", {"masks": np.zeros((2, 9, 9), bool)}),
        ("masks", {"masks": np.zeros((1, 200, 300), bool)}),
    ],
)
def test_what_does_not_fit_is_named(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        draw_detections(**{"image": gray(), "boxes": [[0, 0, 9, 9], [5, 5, 20, 20]], **arguments})


def test_a_png_holds_the_picture() -> None:
    import io

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), image)
