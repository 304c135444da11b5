"""CIFAR-10: the official binary release, or drawn images in its place."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.drawn_images import CLASSES, SIDE, LabelledImages, draw_images
from experiments.data.files import Release, find_folder
from experiments.data.splits import check_least, in_words, pick, scaler, streams

_RELEASE = Release("cifar-10-binary.tar.gz")
_FOLDER = "cifar-10-batches-bin"
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_FILE = "test_batch.bin"
_PICKLED = ("data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz")
_PIXELS = 3 * SIDE * SIDE
_RECORD = 1 + _PIXELS  # a label, then the red, the green and the blue plane
_NUM_EACH = 10_000  # images of a file
# The default sizes of the drawn stand-in.
_DRAWN_TRAIN, _DRAWN_TEST = 5_000, 1_000


class Split(NamedTuple):
    """Images, standardised by channel, and their classes."""

    images: np.ndarray  # float32 [num, 32, 32, 3]
    labels: np.ndarray  # int32 [num], from 0 to 9


@dataclass(frozen=True)
class Cifar10:
    """Two splits, and a description of the source of the images."""

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
    images. The folder contains `data_batch_1.bin` to `data_batch_5.bin` and
    `test_batch.bin`, or contains a folder with these files. Without a folder, shapes in
    ten classes are drawn, see `draw_images`. If a number is None, all images are used,
    or 5,000 and 1,000 are drawn. The seed selects the images.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    counts = {"num_train": num_train, "num_test": num_test}
    check_least(1, **counts)
    rngs = streams(seed, 2)
    if data_dir is None:
        sizes = (num_train or _DRAWN_TRAIN, num_test or _DRAWN_TEST)
        train, test = map(draw_images, sizes, rngs)
        origin = "drawn images of ten shapes, not CIFAR-10,"
    else:
        folder = _find(data_dir)
        files = (_TRAIN_FILES, (_TEST_FILE,))
        parts = []
        for names, (name, num), rng in zip(files, counts.items(), rngs, strict=True):
            batches = [read_batch(folder / file) for file in names]
            images, labels = map(np.concatenate, zip(*batches, strict=True))
            chosen = pick(name, np.arange(len(labels)), num, rng)
            parts.append(LabelledImages(images[chosen], labels[chosen]))
        train, test = parts
        origin = f"CIFAR-10 binary files in {folder}"
    # Reshape to a list of pixels, so that each channel has one mean.
    mean, std = scaler(train.images.reshape(-1, 3))

    def standardised(part: LabelledImages) -> Split:
        return Split((part.images.astype(np.float32) - mean) / std, part.labels)

    source = f"{origin} ({in_words(len(train.labels), len(test.labels))})"
    return Cifar10(standardised(train), standardised(test), source)


def read_batch(path: Path) -> LabelledImages:
    """Reads one file; a record is a label and a red, a green and a blue plane."""
    expected = _NUM_EACH * _RECORD
    with _RELEASE.open(path, expected) as file:
        data = file.read()
    if len(data) != expected:
        raise _RELEASE.error(path, f"has {len(data):,} bytes", f"{expected:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= len(CLASSES):
        place = int(np.argmax(labels >= len(CLASSES)))
        found = f"has the label {labels[place]} at image {place}"
        raise _RELEASE.error(path, found, "labels from 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return LabelledImages(np.moveaxis(planes, 1, -1), labels)


def _find(data_dir: Path) -> Path:
    """Returns the folder of the binary release: `data_dir` or a folder in it."""
    names = (*_TRAIN_FILES, _TEST_FILE)
    wanted = f"{_TRAIN_FILES[0]} to {_TRAIN_FILES[-1]} and {_TEST_FILE}"
    find_folder(data_dir, f"the folder with {wanted}, from {_RELEASE}")
    inner = data_dir / _FOLDER
    folder = inner if inner.is_dir() else data_dir
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return folder
    for name in _PICKLED:
        if (data_dir / name).exists():
            raise ValueError(
                f"{data_dir / name} is the pickled release of CIFAR-10, which is not "
                "read: unpickling a file runs whatever code it holds. Give the binary "
                f"release instead, {_RELEASE}."
            )
    raise FileNotFoundError(
        f"{folder} has no {', '.join(missing)}. It must hold {wanted}, from {_RELEASE}."
    )
