from __future__ import annotations

import numpy as np
import pytest

from torchdcn.synthetic.scenes import CLASS_NAMES, Scene, SceneSettings, _arrange, draw_scene


def draw(difficulty: float, count: int = 25, size: int = 64) -> list[Scene]:
    settings = SceneSettings.at(difficulty)
    return [draw_scene(np.random.default_rng(seed), size, settings) for seed in range(count)]


@pytest.mark.parametrize("size", [33, 64, 151])
@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_every_size_and_difficulty_draws(size: int, difficulty: float) -> None:
    for scene in draw(difficulty, 4, size):
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.labels), size, size)
        assert set(scene.labels) <= set(range(len(CLASS_NAMES)))


def test_a_pixel_belongs_to_one_figure_at_most() -> None:
    for scene in draw(1.0):
        # half of a pixel each is the only way to share one
        assert scene.masks.sum(axis=0).max(initial=0) <= 2
        assert (scene.masks.sum(axis=0) > 1).mean() < 0.01


def test_harder_scenes_hold_more_and_smaller_figures_on_less_contrast() -> None:
    levels = [SceneSettings.at(difficulty) for difficulty in (0.0, 0.5, 1.0)]
    for name in ("motion", "turn", "skew", "objects", "fragments"):
        values = [getattr(level, name) for level in levels]
        assert values == sorted(values)
        assert values[0] != values[2]
    for name in ("smallest", "visible", "contrast"):
        values = [getattr(level, name) for level in levels]
        assert values == sorted(values, reverse=True)
    figures, areas = [], []
    for difficulty in (0.0, 0.5, 1.0):
        scenes = draw(difficulty)
        figures.append(np.mean([len(scene.labels) for scene in scenes]))
        areas.append(np.median([mask.sum() for scene in scenes for mask in scene.masks]))
    assert figures == sorted(figures)
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_figures_stay_visible_to_their_least_share(difficulty: float) -> None:
    settings = SceneSettings.at(difficulty)
    least = 1.0
    for seed in range(20):
        covered = np.zeros((192, 192), np.uint8)
        for layer in reversed(_arrange(np.random.default_rng(seed), 192, settings)):
            if layer.label >= 0:
                seen = np.count_nonzero(layer.silhouette & ~covered)
                least = min(least, seen / np.count_nonzero(layer.silhouette))
            covered |= layer.silhouette
    assert settings.visible <= least < 1  # things do hide each other


def test_classes_are_drawn_alike_in_size_and_colour() -> None:
    sides: dict[int, list[float]] = {label: [] for label in range(len(CLASS_NAMES))}
    colours: dict[int, list[float]] = {label: [] for label in range(len(CLASS_NAMES))}
    for scene in draw(0.0, 120, 64):
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            rows, columns = np.nonzero(mask)
            sides[label].append(max(np.ptp(rows), np.ptp(columns)))
            colours[label].append(scene.image[mask].mean())
    for values, spread in ((sides, 7), (colours, 40)):
        means = [np.mean(value) for value in values.values()]
        assert max(means) - min(means) < spread


def test_figures_differ_from_their_background() -> None:
    scenes = draw(0.0)
    inside = [scene.image[scene.masks.any(axis=0)].mean() for scene in scenes]
    outside = [scene.image[~scene.masks.any(axis=0)].mean() for scene in scenes]
    assert np.mean(np.abs(np.subtract(inside, outside))) > 15
