"""Draws the synthetic scenes: textured figures before clutter, with the exact masks of what is visible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .figures import FIGURES, fragment, pose

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from .figures import Figure

    Palette = tuple[tuple[int, ...], ...]  # RGB colours, 0..255

CLASS_NAMES = tuple(FIGURES)
SUPERSAMPLING = 2
TILE = 128
PALETTES: tuple[Palette, ...] = tuple(
    tuple(tuple(int(code[i : i + 2], 16) for i in (0, 2, 4)) for code in palette.split())
    for palette in (
        "f4a259 5b8e7d bc4b51 f4e285 8cb369 2a4d5a",
        "264653 2a9d8f e9c46a f4a261 e76f51 f1faee",
        "f72585 7209b7 3a0ca3 4361ee 4cc9f0 f8edeb",
        "003049 d62828 f77f00 fcbf49 eae2b7 5fa8a0",
        "606c38 283618 fefae0 dda15e bc6c25 7fa08a",
        "0d3b66 faf0ca f4d35e ee964b f95738 6fb3b8",
        "355070 6d597a b56576 e56b6f eaac8b f2e9e4",
        "22223b 4a4e69 9a8c98 c9ada7 f2e9e4 e07a5f",
    )
)


@dataclass(frozen=True)
class SceneSettings:
    """How scenes are made; ``at(difficulty)`` sets all of it from one number.

    Attributes:
        motion: 0..1: bending, joint angles and changes of proportion, from the rest pose to strong
            articulation.
        turn: Largest rotation to either side in radians.
        skew: 0..1: stretching, shear and perspective.
        smallest: Longest side of the smallest figures, as a share of the scene's side.
        largest: The same of the largest figures.
        objects: Fewest and most figures.
        fragments: Fewest and most pieces of clutter, a quarter of which may lie before figures.
        visible: Least share of a figure that lies outside the outlines (convex hulls) of all that is before it.
        contrast: 0..1: how much the background recedes from figures in colour and brightness.
    """

    motion: float
    turn: float
    skew: float
    smallest: float
    largest: float
    objects: tuple[int, int]
    fragments: tuple[int, int]
    visible: float
    contrast: float

    @classmethod
    def at(cls, difficulty: float) -> SceneSettings:
        """Settings between easy (0) and hard (1), each a straight line between its two ends.

        Raises:
            ValueError: ``difficulty`` is not in 0..1.

        Example:
            >>> from torchdcn.synthetic.scenes import SceneSettings
            >>> SceneSettings.at(0.5).objects
            (1, 5)
        """
        if not 0 <= difficulty <= 1:
            raise ValueError(f"difficulty: expected a number in 0..1, got {difficulty}")

        def between(easy: float, hard: float) -> float:
            return easy + (hard - easy) * difficulty

        return cls(
            motion=between(0.2, 1.0),
            turn=between(np.pi / 8, np.pi),
            skew=between(0.1, 1.0),
            smallest=between(0.38, 0.14),
            largest=between(0.6, 0.75),
            objects=(1, round(between(3, 7))),
            fragments=(round(between(0, 6)), round(between(4, 16))),
            visible=between(0.95, 0.45),
            contrast=between(1.0, 0.2),
        )


@dataclass(frozen=True)
class Scene:
    """A drawn scene: ``image`` uint8 ``[S, S, 3]`` RGB, ``masks`` bool ``[n, S, S]``, ``labels`` ``[n]``."""

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: list[int]


@dataclass
class _Layer:
    silhouette: NDArray[np.uint8]  # 0 or 255, supersampled, of the whole scene
    outline: NDArray[np.uint8]  # the same of its convex hull
    label: int  # -1 for clutter
    window: tuple[slice, slice]


def draw_scene(random: Generator, size: int, settings: SceneSettings) -> Scene:
    """Draws one scene of ``size`` x ``size`` pixels.

    A pixel belongs to a figure if at least half of it shows that figure.

    Example:
        >>> import numpy as np
        >>> from torchdcn.synthetic.scenes import SceneSettings, draw_scene
        >>> scene = draw_scene(np.random.default_rng(0), 96, SceneSettings.at(0.5))
        >>> scene.image.shape, scene.masks.shape[1:]
        ((96, 96, 3), (96, 96))
    """
    palette = PALETTES[random.integers(len(PALETTES))]
    layers = _arrange(random, size * SUPERSAMPLING, settings)
    canvas = _background(random, size * SUPERSAMPLING, palette, settings.contrast)
    light = random.uniform(0, 2 * np.pi)
    for layer in layers:
        _paint(random, canvas, layer, palette, light)
    return Scene(_develop(random, canvas, size), *_visible(layers, size))


def _arrange(random: Generator, side: int, settings: SceneSettings) -> list[_Layer]:
    """Places clutter and figures back to front so that enough of every figure stays visible."""
    count = int(random.integers(settings.objects[0], settings.objects[1] + 1))
    clutter = int(random.integers(settings.fragments[0], settings.fragments[1] + 1))
    before = int(random.binomial(clutter, 0.25))
    layers = [_place(random, side, settings, -1) for _ in range(clutter - before)]
    for label in [int(random.integers(len(CLASS_NAMES))) for _ in range(count)] + [-1] * before:
        for _ in range(12):
            layer = _place(random, side, settings, label)
            if layer.label >= 0 and np.count_nonzero(layer.silhouette) < 40 * SUPERSAMPLING**2:
                continue
            if _leaves_enough(layers, layer, settings.visible):
                layers.append(layer)
                break
    return layers


def _leaves_enough(layers: list[_Layer], new: _Layer, visible: float) -> bool:
    covered = new.outline.copy()
    for layer in reversed(layers):
        if layer.label >= 0:
            seen = np.count_nonzero(cv2.bitwise_and(layer.silhouette, cv2.bitwise_not(covered)))
            if seen < visible * np.count_nonzero(layer.silhouette):
                return False
        covered |= layer.outline
    return True


def _place(random: Generator, side: int, settings: SceneSettings, label: int) -> _Layer:
    if label < 0:
        figure: Figure = fragment(random, settings.motion)
        length = side * random.uniform(0.06, 0.2)
    else:
        figure = FIGURES[CLASS_NAMES[label]](random, settings.motion)
        length = side * np.exp(random.uniform(np.log(settings.smallest), np.log(settings.largest)))
    figure = pose(random, figure, np.pi if label < 0 else settings.turn, settings.skew)
    points = np.concatenate([stack.reshape(-1, 2) for stack in figure])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = length / float((high - low).max())
    reach = (high - low) * scale
    overhang = 0.0 if label >= 0 else 0.5
    corner = random.uniform(-overhang * reach, np.maximum(side - reach * (1 - overhang), 1))
    silhouette, outline = np.zeros((2, side, side), np.uint8)
    hull = cv2.convexHull(np.rint((points - low) * scale + corner).astype(np.int32))
    cv2.fillConvexPoly(outline, hull, 255)
    for stack in figure:
        for polygon in np.rint(((stack - low) * scale + corner) * 16).astype(np.int32):  # in sixteenths of a pixel
            cv2.fillConvexPoly(silhouette, polygon, 255, cv2.LINE_8, 4)
    x, y, w, h = cv2.boundingRect(silhouette)
    margin = side // 24
    window = (slice(max(y - margin, 0), y + h + margin), slice(max(x - margin, 0), x + w + margin))
    return _Layer(silhouette, outline, label, window)


def _visible(layers: list[_Layer], size: int) -> tuple[NDArray[np.bool_], list[int]]:
    """Masks of the visible part of every figure, and their labels; what is hidden altogether is left out."""
    covered = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)
    found: list[tuple[NDArray[np.bool_], int]] = []
    for layer in reversed(layers):
        if layer.label >= 0:
            shown = cv2.bitwise_and(layer.silhouette, cv2.bitwise_not(covered))
            mask = cv2.resize(shown, (size, size), interpolation=cv2.INTER_AREA) >= 128
            if mask.any():
                found.append((mask, layer.label))
        covered |= layer.silhouette
    found.reverse()
    masks = np.stack([mask for mask, _ in found]) if found else np.zeros((0, size, size), np.bool_)
    return masks, [label for _, label in found]


def _background(random: Generator, side: int, palette: Palette, contrast: float) -> NDArray[np.uint8]:
    first, second = random.choice(len(palette), 2, replace=False)
    colours = np.array([palette[first], palette[second]], np.float64)
    middle = colours.mean(axis=0)
    ends = middle * 0.55 + 18 + (colours - middle) * (0.75 - 0.55 * contrast)
    canvas = _coloured(_texture(random, side, side, side), ends)
    glow = random.uniform(0.75, 1.2, (3, 3)).astype(np.float32)
    return _shaded(canvas, np.asarray(cv2.resize(glow, (side, side), interpolation=cv2.INTER_CUBIC)))


def _paint(random: Generator, canvas: NDArray[np.uint8], layer: _Layer, palette: Palette, light: float) -> None:
    """Lays a textured, rounded figure and its shadow on the canvas; ``light`` is the angle it falls from."""
    alpha = np.ascontiguousarray(layer.silhouette[layer.window])
    height, width = alpha.shape
    first, second = random.choice(len(palette), 2, replace=False)
    ends = np.array([palette[first], palette[second]], np.float64)
    pattern = _texture(random, height, width, canvas.shape[0])
    soft = canvas.shape[0] / 100
    lift = cv2.GaussianBlur(alpha, (0, 0), soft).astype(np.float32) / 255
    across, down = cv2.Sobel(lift, cv2.CV_32F, 1, 0), cv2.Sobel(lift, cv2.CV_32F, 0, 1)
    slope = np.cos(light) * across + np.sin(light) * down
    shade = np.clip(0.55 + 0.5 * lift + 0.11 * soft * slope, 0.3, 1.35)
    drop = np.array([[1, 0, -soft * np.cos(light)], [0, 1, -soft * np.sin(light)]])
    shadow = 1 - 0.5 * cv2.warpAffine(lift, drop, (width, height))
    below = _shaded(np.ascontiguousarray(canvas[layer.window]), shadow)
    canvas[layer.window] = cv2.copyTo(_shaded(_coloured(pattern, ends), shade), alpha, below)


def _develop(random: Generator, canvas: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    grain = random.normal(0, 4, (size, size, 1)).astype(np.float32)
    return np.asarray(np.clip(image + grain, 0, 255), np.uint8)


def _coloured(pattern: NDArray[np.uint8], ends: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turns 0..255 into colours between two ends ``[2, 3]``."""
    at = np.linspace(0, 1, 256)[:, None]
    ramp = np.clip(ends[0] * (1 - at) + ends[1] * at, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(cv2.merge([pattern] * 3), ramp[None]), np.uint8)


def _shaded(image: NDArray[np.uint8], factor: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(cv2.multiply(image, cv2.merge([factor] * 3), dtype=cv2.CV_8U), np.uint8)


def _texture(random: Generator, height: int, width: int, side: int) -> NDArray[np.uint8]:
    """A window into one of the textures, turned and scaled by chance: uint8 ``[height, width]``."""
    tile = _tiles()[random.integers(len(_tiles()))]
    angle = random.uniform(0, 2 * np.pi)
    zoom = np.exp(random.uniform(np.log(0.35), np.log(1.0))) * 256 / side
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    shift = random.uniform(0, TILE, 2)
    matrix = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = cv2.warpAffine(tile, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP)
    return np.asarray(window, np.uint8)


@cache
def _tiles() -> tuple[NDArray[np.uint8], ...]:
    """Periodic textures, ``TILE`` x ``TILE``: stripes, waves, checks, dots, scales, weave and clouds."""
    y, x = np.mgrid[0:TILE, 0:TILE] * (2 * np.pi / TILE)
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(TILE, TILE)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE))) * TILE
    cloud = np.real(np.fft.ifft2(noise / np.maximum(frequency, 2) ** 1.3))
    row = np.floor(y / (2 * np.pi) * 16)
    patterns = [
        np.sin(8 * x),
        np.sin(8 * x + 1.2 * np.sin(3 * y)),
        np.sin(8 * x) * np.sin(8 * y),
        np.cos(6 * x) + np.cos(6 * y) - 0.6,
        np.cos(12 * x + np.pi * (row % 2)) + np.cos(16 * y) * 1.2,
        np.where((np.sin(4 * x) * np.sin(4 * y)) > 0, np.sin(16 * x), np.sin(16 * y)),
        np.sin(8 * x) + 0.7 * np.sin(16 * x + 2 * np.sin(2 * y)),
        cloud / cloud.std() * 1.5,
    ]
    return tuple(np.clip(127.5 + 127.5 * np.tanh(1.8 * p), 0, 255).astype(np.uint8) for p in patterns)
