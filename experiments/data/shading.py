"""Colours of surfaces: procedural patterns, light, haze and the camera's noise."""

import numpy as np

from experiments.data.scenes import PATTERNS, Scene

_NOISE = 0.015  # standard deviation of a pixel
_TABLE = 64  # side of the table of random values that makes mottle


def shade(
    scene: Scene,
    parts: np.ndarray,  # int [points], the part to which each point belongs
    *,
    points: np.ndarray,  # [3, points], places in the world
    normals: np.ndarray,  # [3, points], unit, in the world
    local: np.ndarray,  # [3, points], places in the frames of the parts, in metres
    local_normals: np.ndarray,  # [3, points], of the canonical shapes
    distance: np.ndarray,  # [points], from the camera
    rng: np.random.Generator,  # of the camera's noise
) -> np.ndarray:
    """Returns the colours of points, uint8 [3, points]."""
    mix = _pattern(scene, parts, local, local_normals)
    colours = scene.colours.T.take(parts, axis=1)
    colours += mix * (scene.accents - scene.colours).T.take(parts, axis=1)

    to_light = scene.light[:, None] - points
    square = np.einsum("in,in->n", to_light, to_light)
    lit = np.einsum("in,in->n", normals, to_light) / np.sqrt(square)
    lit = np.maximum(lit, 0) / (1 + square / np.float32(scene.reach) ** 2)
    # Surfaces that face up get more of the light that comes from everywhere.
    ambient = np.float32(scene.ambient) * (0.85 + 0.15 * normals[2])
    light = ambient + np.float32(1.15 * (1 - scene.ambient)) * lit
    glow = scene.glows.take(parts)
    colours *= light + glow * (1 - light)

    haze = (1 - np.exp(-distance / np.float32(scene.haze))) * (1 - glow)
    colours += haze * (np.float32(0.8) - colours)
    colours += _NOISE * rng.standard_normal(colours.shape, np.float32)
    return np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def _pattern(
    scene: Scene, parts: np.ndarray, local: np.ndarray, local_normals: np.ndarray
) -> np.ndarray:
    """Returns the share of the accent in the colour of each point."""
    mix = np.zeros(len(parts), np.float32)
    table = np.random.default_rng(scene.seed).random([_TABLE, _TABLE], np.float32)
    patterns = scene.patterns.take(parts)
    for pattern, name in enumerate(PATTERNS):
        (chosen,) = np.nonzero(patterns == pattern)
        if name == "plain" or not len(chosen):
            continue
        scales = scene.scales.take(parts.take(chosen))
        places = local.take(chosen, axis=1) / scales
        u, v = _unfold(places, local_normals.take(chosen, axis=1))
        match name:
            case "stripes":
                mix[chosen] = np.floor(u) % 2
            case "checks":
                mix[chosen] = (np.floor(u) + np.floor(v)) % 2
            case "mottle":
                coarse, fine = _smooth(table, u, v), _smooth(table, 3.7 * u, 3.7 * v)
                mix[chosen] = (2 * coarse + fine) / 3
    return mix


def _unfold(places: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two coordinates along which a surface's normal is smallest."""
    x, y, z = places
    axis = np.argmax(np.abs(normals), axis=0)
    return np.where(axis == 0, y, x), np.where(axis == 2, y, z)


def _smooth(table: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Interpolates a table of values at the integers, repeated periodically."""
    row, column = np.floor(u), np.floor(v)
    down, right = (x * x * (3 - 2 * x) for x in (u - row, v - column))
    low, left = (x.astype(np.intp) % _TABLE for x in (row, column))
    high, end = (low + 1) % _TABLE, (left + 1) % _TABLE
    first, second = (
        table[line, left] + right * (table[line, end] - table[line, left])
        for line in (low, high)
    )
    return first + down * (second - first)
