"""Drawn images of ten shapes: a stand-in for CIFAR-10.

They have CIFAR-10's form, small colour images in ten classes, and none of its content:
errors on these images say nothing about photographs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "plus",
    "cross-hatch",
    "stripes",
    "dots",
    "halves",
)
SIDE = 32

_SIZE = (0.45, 0.8)  # radius of a shape, in half sides of the image
_SHIFT = 0.25  # of its centre, likewise
_NOISE = 0.06
_LEAST_CONTRAST = 0.35  # between the two colours, in some channel
_CHUNK = 1024


class LabelledImages(NamedTuple):
    """images: uint8 [num, 32, 32, 3]. labels: int32 [num], a class from 0 to 9."""

    images: np.ndarray
    labels: np.ndarray


def draw_images(num: int, rng: np.random.Generator) -> LabelledImages:
    """Draws shapes of random place, size, turn and colours, with noise.

    Classes come equally often, up to once, in random order.

    Args:
        num: the number of images.
        rng: the source of randomness.

    Returns:
        The images, and their classes as places in `CLASSES`.

    Examples:
        >>> drawn = draw_images(20, np.random.default_rng(0))
        >>> drawn.images.shape, np.bincount(drawn.labels).tolist()
        ((20, 32, 32, 3), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    labels = rng.permutation(num).astype(np.int32) % len(CLASSES)
    images = np.empty([num, SIDE, SIDE, 3], np.uint8)
    for start in range(0, num, _CHUNK):
        rows = slice(start, start + _CHUNK)
        images[rows] = _draw(labels[rows], rng)
    return LabelledImages(images, labels)


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws one image for each label."""
    num = len(labels)
    place = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    centre = rng.uniform(-_SHIFT, _SHIFT, [2, num, 1, 1])
    radius = rng.uniform(*_SIZE, [num, 1, 1])
    turn = rng.uniform(-np.pi / 12, np.pi / 12, [num, 1, 1])
    x = (place[None, None, :] - centre[0]) / radius
    y = (place[None, :, None] - centre[1]) / radius
    x, y = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    inside = np.empty([num, SIDE, SIDE], bool)
    for label, shape in enumerate(_SHAPES):
        chosen = labels == label
        inside[chosen] = shape(x[chosen], y[chosen])
    ground, shift = rng.uniform(size=[2, num, 1, 1, 3])
    # Away from the colour of the ground, where there is more room.
    shift = _LEAST_CONTRAST + (0.5 - _LEAST_CONTRAST) * shift
    colour = ground + np.where(ground > 0.5, -shift, shift)
    pixels = np.where(inside[..., None], colour, ground)
    pixels = pixels + rng.normal(0, _NOISE, pixels.shape)
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y))


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) < 1


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.8) < 0.2


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y) < 0.9


def _frame(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(_box(x, y) - 0.75) < 0.2


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0.8) & (y > 1.8 * np.abs(x) - 0.9)


def _plus(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.minimum(np.abs(x), np.abs(y)) < 0.25) & (_box(x, y) < 1)


def _hatch(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.minimum(np.abs(x - y), np.abs(x + y)) < 0.35) & (_box(x, y) < 1)


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.cos(3 * np.pi * y) > 0) & (_box(x, y) < 1)


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    far = np.hypot(np.abs(x) - 0.55, np.abs(y) - 0.55)
    return far < 0.4


def _halves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.hypot(x, y) < 1) & (np.abs(x) > 0.2)


_SHAPES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    _disc,
    _ring,
    _square,
    _frame,
    _triangle,
    _plus,
    _hatch,
    _stripes,
    _dots,
    _halves,
)
