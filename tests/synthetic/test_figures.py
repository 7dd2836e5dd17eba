from __future__ import annotations

import cv2
import numpy as np
import pytest

from torchdcn.synthetic.figures import FIGURES, fragment, pose


def silhouette(figure: list[np.ndarray], side: int = 256) -> np.ndarray:
    canvas = np.zeros((side, side), np.uint8)
    points = np.concatenate([stack.reshape(-1, 2) for stack in figure])
    low, reach = points.min(axis=0), np.ptp(points, axis=0).max()
    for stack in figure:
        for polygon in np.rint(8 + (stack - low) / reach * (side - 16)).astype(np.int32):
            cv2.fillConvexPoly(canvas, polygon, 1)
    return canvas


def holes(mask: np.ndarray) -> int:
    background = np.pad(1 - mask, 1, constant_values=1)
    return int(cv2.connectedComponents(background, connectivity=4)[0] - 2)


@pytest.mark.parametrize("motion", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_hangs_together_in_every_pose(name: str, motion: float) -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        mask = silhouette(pose(random, FIGURES[name](random, motion), np.pi, motion))
        assert cv2.connectedComponents(mask)[0] == 2  # the background and one figure
        assert 0.02 < mask.mean() < 0.75


@pytest.mark.parametrize(
    ("name", "least", "most"), [("ring", 1, 1), ("ladder", 3, 5), ("starfish", 0, 0), ("snake", 0, 0)]
)
def test_at_rest_a_class_keeps_its_holes(name: str, least: int, most: int) -> None:
    for seed in range(10):
        assert least <= holes(silhouette(FIGURES[name](np.random.default_rng(seed), 0.0))) <= most


def test_motion_bends_figures_away_from_their_rest() -> None:
    def variety(name: str, motion: float) -> float:
        masks = [silhouette(FIGURES[name](np.random.default_rng(seed), motion)) for seed in range(12)]
        return float(np.mean(np.std(np.stack(masks).astype(float), axis=0)))

    for name in FIGURES:
        assert variety(name, 1.0) > variety(name, 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_pieces_stay_convex_in_perspective(seed: int) -> None:
    random = np.random.default_rng(seed)
    for figure in (FIGURES["fish"](random, 1.0), fragment(random, 1.0)):
        for stack in pose(random, figure, np.pi, 1.0):
            edges = np.diff(np.concatenate([stack, stack[:, :2]], axis=1), axis=1)
            turns = edges[:, :-1, 0] * edges[:, 1:, 1] - edges[:, :-1, 1] * edges[:, 1:, 0]
            signs = np.sign(np.where(np.abs(turns) < 1e-9, 0, turns))
            assert ((signs >= 0).all(axis=1) | (signs <= 0).all(axis=1)).all()
