"""Forty yes-or-no attributes of a digit: a stand-in for the forty of CelebA.

They are real labels of real images: ten attributes say which digit it is, six follow
from the digit, and 24 from the shape of the ink, measured in the image.
"""

import itertools

import numpy as np

# Attributes that follow from the digit.
CLASSES = {
    "even": (0, 2, 4, 6, 8),
    "at least five": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "multiple of three": (0, 3, 6, 9),
    "has a loop": (0, 6, 8, 9),
    "straight strokes only": (1, 4, 7),
}
_NUM_DIGITS = 10
_SIDE = 28
_PARTS = {"first": slice(0, 10), "middle": slice(10, 18), "last": slice(18, 28)}


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measures the shape of digits: 24 measures by name, each float `[num]`.

    The images are uint8 `[num, 28, 28]`, each with some ink. All measures except `ink`
    and `width` are relative to the digit's own ink or size. Nine measures are the
    shares of the ink in the cells of a 3 x 3 grid.
    """
    grey = images / 255.0
    on = grey > 0.5
    ink = grey.sum(axis=(1, 2))
    centred = np.arange(_SIDE) - (_SIDE - 1) / 2

    def mean(weights: np.ndarray) -> np.ndarray:
        """Returns the mean of the pixels' values, weighted by ink."""
        return np.sum(grey * weights, axis=(1, 2)) / ink

    # Coordinates start at the centre of the ink. The y axis points down, so upright
    # strokes lean by -x / y.
    x = centred - mean(centred[None, None, :])[:, None, None]
    y = centred[:, None] - mean(centred[None, :, None])[:, None, None]
    wide, high = np.sqrt(mean(x**2)), np.sqrt(mean(y**2))
    # Pixels at which ink begins, along rows and along columns.
    begins = [np.diff(on.astype(np.int8), axis=axis) == 1 for axis in (2, 1)]
    across, down = (edge.sum(axis=(1, 2)) for edge in begins)
    rows, columns = (np.asarray(on.any(axis=axis)) for axis in (2, 1))
    height, width = _extent(rows), _extent(columns)
    area = on.sum(axis=(1, 2))

    def likeness(other: np.ndarray) -> np.ndarray:
        return np.sum(grey * other, axis=(1, 2)) / np.sum(grey**2, axis=(1, 2))

    measures = {
        "ink": ink,
        "width": width.astype(float),
        "spread along x": wide,
        "spread along y": high,
        "aspect": wide / high,
        "slant": -mean(x * y) / high**2,
        "skew along x": mean(x**3) / wide**3,
        "skew along y": mean(y**3) / high**3,
        "left-right symmetry": likeness(grey[:, :, ::-1]),
        "up-down symmetry": likeness(grey[:, ::-1]),
        "half-turn symmetry": likeness(grey[:, ::-1, ::-1]),
        "strokes across a row": across / rows.sum(axis=1),
        "strokes down a column": down / columns.sum(axis=1),
        "thickness": area / (across + down),
        "filled share of the box": area / (height * width),
    }
    for up, side in itertools.product(_PARTS, repeat=2):
        share = grey[:, _PARTS[up], _PARTS[side]].sum(axis=(1, 2)) / ink
        measures[f"{up} rows, {side} columns"] = share
    return measures


def _extent(inked: np.ndarray) -> np.ndarray:
    """Returns the length from the first to the last entry with ink, `[num]`."""
    return _SIDE - np.argmax(inked, axis=1) - np.argmax(inked[:, ::-1], axis=1)


def medians(images: np.ndarray) -> dict[str, float]:
    """Returns the median of every measure; medians of train digits are thresholds."""
    return {name: float(np.median(values)) for name, values in measure(images).items()}


def label(
    images: np.ndarray, digits: np.ndarray, thresholds: dict[str, float]
) -> dict[str, np.ndarray]:
    """Answers the 40 questions on digits and their images: bool `[num]` by name.

    The thresholds are the medians of the measures, see `medians`.
    """
    labels = {f"digit {digit}": digits == digit for digit in range(_NUM_DIGITS)}
    for name, members in CLASSES.items():
        labels[name] = np.isin(digits, members)
    for name, values in measure(images).items():
        labels[f"above the median: {name}"] = values > thresholds[name]
    return labels
