"""Drawn images of ten shapes: a stand-in for CIFAR-10.

They have CIFAR-10's form, small colour images in ten classes, but none of its content.
So errors on these images say nothing about photographs.
"""

from typing import NamedTuple

import numpy as np

SIDE = 32

_SIZE = (0.45, 0.8)  # radius of a shape, in half sides of the image
_SHIFT = 0.25  # offset of its centre, in the same unit
_NOISE = 0.06
_LEAST_CONTRAST = 0.35  # difference of the two colours in some channel
_CHUNK = 1024


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y))


def _lines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(x), np.abs(y))


# Functions that tell which points are inside a shape of radius 1.
_SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) < 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) < 0.2,
    "square": lambda x, y: _box(x, y) < 0.9,
    "frame": lambda x, y: np.abs(_box(x, y) - 0.75) < 0.2,
    "triangle": lambda x, y: (y < 0.8) & (y > 1.8 * np.abs(x) - 0.9),
    "plus": lambda x, y: (_lines(x, y) < 0.25) & (_box(x, y) < 1),
    "cross-hatch": lambda x, y: (_lines(x - y, x + y) < 0.35) & (_box(x, y) < 1),
    "stripes": lambda x, y: (np.cos(3 * np.pi * y) > 0) & (_box(x, y) < 1),
    "dots": lambda x, y: np.hypot(np.abs(x) - 0.55, np.abs(y) - 0.55) < 0.4,
    "halves": lambda x, y: (np.hypot(x, y) < 1) & (np.abs(x) > 0.2),
}
CLASSES = tuple(_SHAPES)


class LabelledImages(NamedTuple):
    """images: uint8 [num, 32, 32, 3]. labels: int32 [num], a class from 0 to 9."""

    images: np.ndarray
    labels: np.ndarray


def draw_images(num: int, rng: np.random.Generator) -> LabelledImages:
    """Draws `num` shapes with random place, size, rotation and colours, and noise.

    All classes (indices of `CLASSES`) are equally frequent, up to one image, in random
    order.
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
    for label, shape in enumerate(_SHAPES.values()):
        chosen = labels == label
        inside[chosen] = shape(x[chosen], y[chosen])
    ground, shift = rng.uniform(size=[2, num, 1, 1, 3])
    # Choose the side of the background's colour on which there is more room.
    shift = _LEAST_CONTRAST + (0.5 - _LEAST_CONTRAST) * shift
    colour = ground + np.where(ground > 0.5, -shift, shift)
    pixels = np.where(inside[..., None], colour, ground)
    pixels = pixels + rng.normal(0, _NOISE, pixels.shape)
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
