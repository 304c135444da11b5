"""CIFAR-10: the official binary release, or drawn images in its place."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.drawn_images import CLASSES, SIDE, LabelledImages, draw_images
from experiments.data.files import release_error
from experiments.data.splits import scaler

_RELEASE = "cifar-10-binary.tar.gz"
_FOLDER = "cifar-10-batches-bin"
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_FILE = "test_batch.bin"
_PIXELS = 3 * SIDE * SIDE
_RECORD = 1 + _PIXELS  # a label, then the red, the green and the blue plane
_NUM_EACH = 10_000  # images of a file
# What the drawn stand-in has, unless told otherwise.
_DRAWN_TRAIN, _DRAWN_TEST = 5_000, 1_000


class Split(NamedTuple):
    """Images, standardised by channel, and their classes.

    images: float32 [num, 32, 32, 3]. labels: int32 [num], from 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Cifar10:
    """Two splits and, in words, where the images come from."""

    train: Split
    test: Split
    source: str


def load_cifar10(
    data_dir: Path | None = None,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
) -> Cifar10:
    """Loads CIFAR-10 from its binary release, or draws images in its place.

    Each channel is standardised by its mean and standard deviation over the train
    images.

    Args:
        data_dir: the folder of the binary release, with `data_batch_1.bin` to
            `data_batch_5.bin` and `test_batch.bin`, or the folder that holds it. None
            draws shapes in ten classes, see `draw_images`.
        num_train: the number of train images, drawn from all 50,000. None takes all,
            or draws 5,000.
        num_test: likewise, of 10,000, or draws 1,000.
        seed: picks the images.

    Returns:
        The splits. `source` names the images for a table or a log.

    Raises:
        FileNotFoundError: if `data_dir` or one of its files is missing.
        ValueError: if a file is damaged, if the folder holds the pickled release, or
            if a number is below 1 or above what there is.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    for name, count in (("num_train", num_train), ("num_test", num_test)):
        if count is not None and count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}.")
    streams = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
    if data_dir is None:
        sizes = (num_train or _DRAWN_TRAIN, num_test or _DRAWN_TEST)
        train, test = (
            draw_images(size, rng) for size, rng in zip(sizes, streams, strict=True)
        )
        origin = "drawn images of ten shapes, not CIFAR-10,"
    else:
        folder = _find(data_dir)
        files = (_TRAIN_FILES, (_TEST_FILE,))
        train, test = (
            _take([folder / name for name in names], count, rng)
            for names, count, rng in zip(
                files, (num_train, num_test), streams, strict=True
            )
        )
        origin = f"CIFAR-10 binary files in {folder}"
    # One pixel after the other, so that a channel has one mean.
    mean, std = scaler(train.images.reshape(-1, 3))

    def standardised(part: LabelledImages) -> Split:
        return Split((part.images.astype(np.float32) - mean) / std, part.labels)

    source = f"{origin} ({len(train.labels):,} train / {len(test.labels):,} test)"
    return Cifar10(standardised(train), standardised(test), source)


def read_batch(path: Path) -> LabelledImages:
    """Reads one file of the binary release.

    Args:
        path: the file: records of a label and 3,072 pixels, red, green and blue plane.

    Returns:
        Its images, with the channels last, and their labels.

    Raises:
        ValueError: if the file is cut short or goes on, or a label is no class.
    """
    size, expected = path.stat().st_size, _NUM_EACH * _RECORD
    if size != expected:
        found = f"has {size:,} bytes"
        raise release_error(path, found, f"{expected:,}", _RELEASE)
    records = np.fromfile(path, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= len(CLASSES):
        place = int(np.argmax(labels >= len(CLASSES)))
        found = f"has the label {labels[place]} at image {place}"
        raise release_error(path, found, "labels from 0 to 9", _RELEASE)
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return LabelledImages(np.moveaxis(planes, 1, -1), labels)


def _take(
    paths: list[Path], count: int | None, rng: np.random.Generator
) -> LabelledImages:
    """Reads `count` images of some files, or all."""
    batches = [read_batch(path) for path in paths]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    if count is None:
        return LabelledImages(images, labels)
    if count > len(labels):
        raise ValueError(f"CIFAR-10 has {len(labels):,} such images, got {count:,}.")
    chosen = np.sort(rng.permutation(len(labels))[:count])
    return LabelledImages(images[chosen], labels[chosen])


def _find(data_dir: Path) -> Path:
    """Returns the folder of the binary release: `data_dir`, or one within."""
    wanted = f"{_TRAIN_FILES[0]} to {_TRAIN_FILES[-1]} and {_TEST_FILE}"
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be a folder, got {data_dir}. It must hold {wanted}, from "
            f"{_RELEASE}."
        )
    names = (*_TRAIN_FILES, _TEST_FILE)
    missing = {
        folder: [name for name in names if not (folder / name).is_file()]
        for folder in (data_dir, data_dir / _FOLDER)
    }
    for folder, absent in missing.items():
        if not absent:
            return folder
    pickled = ("data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    for name in pickled:
        if (data_dir / name).exists():
            raise ValueError(
                f"{data_dir / name} is the pickled release of CIFAR-10, which is not "
                "read: unpickling a file runs whatever code it holds. Give the binary "
                f"release instead, {_RELEASE}."
            )
    fewest = min(missing, key=lambda folder: len(missing[folder]))
    raise FileNotFoundError(
        f"{fewest} has no {', '.join(missing[fewest])}. It must hold {wanted}, from "
        f"{_RELEASE}."
    )
