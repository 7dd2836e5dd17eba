"""The classes of the synthetic scenes: jointed and bent figures, built from convex pieces.

A figure is a list of stacks ``[m, k, 2]``, each of m convex polygons of k corners (x to the right, y down,
about unit size); the union of all is its silhouette. The classes differ in how their parts hang together,
which survives bending, turning and shearing; nothing else tells them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Points = NDArray[np.float64]
    Figure = list[Points]

DISC = np.stack([np.cos(np.arange(12) * np.pi / 6), np.sin(np.arange(12) * np.pi / 6)], axis=1)


def tube(spine: Points, radius: NDArray[np.float64], closed: bool = False) -> Figure:
    """A tube along ``spine [n, 2]`` whose half-width is ``radius [n]``: discs, and quads between them."""
    if closed:
        spine, radius = np.concatenate([spine, spine[:1]]), np.concatenate([radius, radius[:1]])
    step = np.diff(spine, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.maximum(np.linalg.norm(step, axis=1), 1e-9)[:, None]
    from_side, to_side = normal * radius[:-1, None], normal * radius[1:, None]
    quads = np.stack([spine[:-1] + from_side, spine[1:] + to_side, spine[1:] - to_side, spine[:-1] - from_side], axis=1)
    discs = spine[:, None] + radius[:, None, None] * DISC
    return [quads, discs] if len(quads) else [discs]


def curve(
    length: float, turn: NDArray[np.float64], start: tuple[float, float] = (0.0, 0.0), angle: float = 0.0
) -> Points:
    """A curve ``[n + 1, 2]`` of n equal steps from ``start``; its heading is ``angle`` plus the turns so far."""
    heading = angle + np.cumsum(turn)
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / len(turn))
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]) + start


def bend(random: Generator, steps: int, total: float) -> NDArray[np.float64]:
    """Turns of a curve's steps: an arc plus a wave; they sum to some radians within about ``total``."""
    at = np.linspace(0, 1, steps)
    arc = random.uniform(-0.6, 0.6)
    wave = random.uniform(-1, 1) * np.cos(2 * np.pi * (random.uniform(0.5, 1) * at + random.uniform()))
    return total * (arc + 1.6 * wave) / steps


def snake(random: Generator, motion: float) -> Figure:
    """One long tube that winds, thick at the head and thin at the tail."""
    steps = 30
    wave = np.cos(2 * np.pi * (random.uniform(0.8, 1.6) * np.linspace(0, 1, steps) + random.uniform()))
    turn = (0.6 + 2.2 * motion) * random.uniform(0.6, 1.0) * wave * 3 / steps + bend(random, steps, 1.6 * motion)
    at = np.linspace(0, 1, steps + 1)
    radius = 0.13 * np.interp(at, [0, 0.06, 0.14, 0.3, 0.65, 1], [0.9, 1.3, 1.0, 1.15, 1.0, 0.25])
    return tube(curve(2.6, turn), radius * random.uniform(0.85, 1.2))


def ring(random: Generator, motion: float) -> Figure:
    """A closed tube: a loop pulled out of round, with its hole."""
    around = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    reach = np.ones(30)
    for waves, size in ((2, 0.22), (3, 0.16), (4, 0.06)):
        reach += motion * size * random.uniform(-1, 1) * np.cos(waves * around + random.uniform(0, 2 * np.pi))
    spine = np.stack([np.cos(around), np.sin(around)], axis=1) * reach[:, None]
    return tube(
        spine,
        random.uniform(0.2, 0.3) * (1 + 0.25 * motion * np.cos(around + random.uniform(0, 6.3))),
        closed=True,
    )


def starfish(random: Generator, motion: float) -> Figure:
    """Five tapered arms around a centre, each bent on its own."""
    pieces = tube(np.zeros((1, 2)), np.array([0.34]))
    for arm in range(5):
        angle = 2 * np.pi * arm / 5 + motion * random.uniform(-0.28, 0.28)
        length = 1 + 0.3 * motion * random.uniform(-1, 1)
        spine = curve(length, bend(random, 7, 1.7 * motion), angle=angle)
        pieces += tube(spine, np.linspace(0.27, 0.09, 8) * random.uniform(0.9, 1.1))
    return pieces


def spider(random: Generator, motion: float) -> Figure:
    """A body of two parts and eight thin legs with a knee and a foot each."""
    tilt = motion * random.uniform(-0.5, 0.5)
    back = np.array([-np.cos(tilt), np.sin(tilt)])
    pieces = tube(np.zeros((1, 2)), np.array([0.25]))
    pieces += tube(np.stack([back * 0.34, back * 0.62]), np.array([0.3, 0.24]) * random.uniform(0.9, 1.15))
    for side in (-1, 1):
        for leg in range(4):
            angle = side * (0.55 + 0.62 * leg + motion * random.uniform(-0.22, 0.22))
            knee = side * random.uniform(0.3, 0.3 + 1.0 * motion) * (-1 if leg < 2 else 1)
            foot = knee * random.uniform(0.5, 1.0)
            turn = np.array([0.0, 0.0, knee, 0.0, foot, 0.0])
            spine = curve(1.25 + 0.2 * motion * random.uniform(-1, 1), turn, angle=angle)
            pieces += tube(spine, np.linspace(0.11, 0.07, 7))
    return pieces


def ladder(random: Generator, motion: float) -> Figure:
    """Two rails that bend together, joined by rungs."""
    rungs = int(random.integers(4, 7))
    steps = 24
    spine = curve(2.4, bend(random, steps, 2.2 * motion))
    ahead = np.gradient(spine, axis=0)
    side = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1) / np.linalg.norm(ahead, axis=1, keepdims=True)
    half = random.uniform(0.34, 0.42) * np.linspace(1, 1 + 0.4 * motion * random.uniform(-1, 1), steps + 1)[:, None]
    width = random.uniform(0.1, 0.125)
    left, right = spine + side * half, spine - side * half
    pieces = tube(left, np.full(steps + 1, width)) + tube(right, np.full(steps + 1, width))
    for at in np.linspace(0.09, 0.91, rungs):
        ends = np.array([_at(left, at), _at(right, at + motion * random.uniform(-0.04, 0.04))])
        pieces += tube(ends, np.full(2, width * 0.85))
    return pieces


def fish(random: Generator, motion: float) -> Figure:
    """A lens-shaped body with a forked tail and two fins, bent along its spine."""
    steps = 20
    spine = curve(1.7, bend(random, steps, 1.9 * motion))
    at = np.linspace(0, 1, steps + 1)
    profile = np.interp(at, [0, 0.08, 0.22, 0.42, 0.65, 0.88, 1], [0.1, 0.24, 0.38, 0.44, 0.3, 0.12, 0.1])
    pieces = tube(spine, profile * random.uniform(0.85, 1.15))
    tail = _heading(spine, steps) + motion * random.uniform(-0.5, 0.5)
    pieces.append(np.stack([_fin(spine[-2], tail + side * 0.5, 0.75, 0.3, side) for side in (-1, 1)]))
    for side in (-1, 1):
        swing = side * (0.85 + 0.3 * motion * random.uniform(-1, 1))
        pieces.append(_fin(spine[7], _heading(spine, 7) + swing, 0.85, 0.22, side)[None])
    return pieces


def _fin(root: Points, angle: float, length: float, width: float, side: int) -> Points:
    """A quadrilateral fin ``[4, 2]`` from its root on the body outwards, its hind edge on ``side``."""
    outline = np.array([[0, -0.25 * width], [0.92 * length, -0.5 * width], [length, 0.5 * width], [0, 0.55 * width]])
    return root + (outline * [1, side]) @ _rotation(angle).T


def _heading(spine: Points, at: int) -> float:
    step = spine[at] - spine[at - 2]
    return float(np.arctan2(step[1], step[0]))


FIGURES: dict[str, Callable[[Generator, float], Figure]] = {
    "fish": fish,
    "ladder": ladder,
    "ring": ring,
    "snake": snake,
    "spider": spider,
    "starfish": starfish,
}
"""Every class: a function of a random generator and of the motion, 0 (rest pose) to 1 (strong bending)."""


def fragment(random: Generator, motion: float) -> Figure:
    """A piece that belongs to no class: a disc, a bar, an elbow, a triangle or a few crumbs."""
    kind = int(random.integers(5))
    if kind == 0:
        return tube(np.zeros((1, 2)), np.array([0.6])) + tube(random.normal(0, 0.3, (2, 2)), np.array([0.5, 0.4]))
    if kind == 1:
        return tube(curve(1.2, bend(random, 6, 0.8 * motion)), np.linspace(0.22, random.uniform(0.1, 0.3), 7))
    if kind == 2:
        bent = np.array([0, 0, random.choice([-1, 1]) * random.uniform(0.7, 1.8), 0])
        return tube(curve(1.3, bent), np.full(5, random.uniform(0.12, 0.2)))
    if kind == 3:
        corners = 2 * np.pi * (np.arange(3) + random.uniform(-0.25, 0.25, 3)) / 3
        return [np.stack([np.cos(corners), np.sin(corners)], axis=1)[None]]
    return [random.normal(0, 0.55, (3, 1, 2)) + random.uniform(0.15, 0.35, (3, 1, 1)) * DISC]


def pose(random: Generator, figure: Figure, turn: float, skew: float) -> Figure:
    """A figure turned by up to ``turn`` radians, mirrored at times, and seen in perspective.

    Args:
        random: The source of chance.
        figure: Convex polygons, which stay convex.
        turn: Largest angle to either side; pi is any direction.
        skew: 0..1: how much it is stretched (up to 1.6 to 1), sheared (up to 0.45) and foreshortened.
    """
    points = np.concatenate([stack.reshape(-1, 2) for stack in figure])
    low, high = points.min(axis=0), points.max(axis=0)
    angle, tilt = random.uniform(-turn, turn), random.uniform(-np.pi, np.pi)
    stretch = np.exp(skew * random.uniform(-0.235, 0.235))
    shear = skew * random.uniform(-0.45, 0.45)
    mirror = np.diag([random.choice([-1.0, 1.0]), 1.0])
    linear = _rotation(tilt) @ np.array([[stretch, shear], [0, 1 / stretch]]) @ _rotation(angle - tilt) @ mirror
    flat = (points - (low + high) / 2) @ linear.T * (2 / float((high - low).max()))
    vanishing = skew * random.uniform(-0.22, 0.22, 2)
    posed = flat / (1 + np.clip(flat @ vanishing, -0.6, 0.6))[:, None]
    ends = np.cumsum([stack.shape[0] * stack.shape[1] for stack in figure])[:-1]
    return [part.reshape(stack.shape) for part, stack in zip(np.split(posed, ends), figure, strict=True)]


def _rotation(angle: float) -> Points:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _at(line: Points, fraction: float) -> Points:
    position = np.clip(fraction, 0, 1) * (len(line) - 1)
    index = min(int(position), len(line) - 2)
    return np.asarray(line[index] + (position - index) * (line[index + 1] - line[index]))
