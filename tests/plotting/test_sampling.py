from __future__ import annotations

import numpy as np
import pytest

from torchdcn.plotting import draw_sampling_points


def test_the_picture_keeps_its_pixels_and_gets_a_legend_below() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    points = np.random.default_rng(1).uniform(0, 60, (30, 2))
    drawn = draw_sampling_points(image, points, np.linspace(0, 1, 30), centre=[50, 30], regular=points + 3, scale=4)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] == 400
    assert 240 < drawn.shape[0] < 400
    legend = drawn[240:]
    assert (legend == 255).mean() > 0.5
    assert (legend < 100).any()


def test_a_point_is_drawn_where_it_is() -> None:
    image = np.full((100, 100, 3), 128, np.uint8)
    without = draw_sampling_points(image, np.zeros((0, 2)), scale=8)[:800].astype(int)
    with_one = draw_sampling_points(image, [[60.0, 20.0]], scale=8)[:800].astype(int)
    rows, columns = np.nonzero(np.abs(with_one - without).sum(-1))
    assert (rows.mean() + 0.5) / 8 - 0.5 == pytest.approx(20, abs=0.15)
    assert (columns.mean() + 0.5) / 8 - 0.5 == pytest.approx(60, abs=0.15)


def test_points_outside_of_the_picture_do_not_change_its_size() -> None:
    image = np.full((100, 100, 3), 128, np.uint8)
    assert draw_sampling_points(image, [[-500, 900]]).shape == draw_sampling_points(image, [[5, 9]]).shape


def test_weights_must_match_the_points() -> None:
    with pytest.raises(ValueError, match=r"^weights: expected"):
        draw_sampling_points(np.zeros((9, 9, 3), np.uint8), [[1, 1]], [0.5, 0.5])
